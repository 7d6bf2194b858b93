"""Checks a notebook's parameters before anything is computed with them, and shows them as a table.

papermill injects whatever it is given: `-p epoch 200` in a notebook whose parameter is called `epochs` trains with the
default. `checked_parameters()`, in the cell after the parameters, makes this an error. The cell tagged `parameters`
holds typed assignments of literals and nothing else, each with a comment:

    epochs: int = 3  # passes over the training split

A running kernel knows neither the tags of its cells nor the notebook's file, which papermill's `inspect_notebook`
needs, so the cell is recognized by its form.
"""

import ast
import html
import linecache
import typing
from typing import Any

import pandas as pd
from IPython import get_ipython
from IPython.display import display

from s2fpn_lib.runs import require_writable, results_root
from s2fpn_lib.validate import as_declared, did_you_mean

INJECTED_HEADING = "# Parameters"  # first line of the cell that papermill inserts below the parameters cell
TABLE = "parameters"  # key in the metadata of the output that holds the table


class ParameterError(ValueError):
    """A parameter is unknown, has the wrong type, or is declared in a form that cannot be checked."""


def declarations(source: str) -> dict[str, tuple[str, str, str]]:
    """{name: (annotation, default, comment)} of a parameters cell, else {}; ParameterError for an incomplete line."""
    lines, complete, incomplete = source.splitlines(), {}, []
    try:
        for statement in ast.parse(source).body:
            if not isinstance(statement, ast.Assign | ast.AnnAssign):
                return {}
            ast.literal_eval(statement.value)
            comment = lines[statement.end_lineno - 1].encode()[statement.end_col_offset :].decode().strip("# ")
            if isinstance(statement, ast.AnnAssign) and comment:
                name, annotation, default = map(ast.unparse, (statement.target, statement.annotation, statement.value))
                complete[name] = (annotation, default, comment)
            else:
                incomplete.append(ast.unparse(statement))
    except (SyntaxError, TypeError, ValueError):
        return {}
    if complete and incomplete:
        problem = f"The parameters cell has a line without a type or a comment: {incomplete[0]!r}"
        raise ParameterError(f"{problem}\nWrite every parameter as:  name: type = value  # what it does")
    return complete


def checked_parameters() -> dict[str, Any]:
    """The running notebook's parameters, {name: current value}, in the order of their declaration.

    Converts the notebook's variables as `as_declared` does (an int to a declared float, a list to a tuple), and
    displays those that were changed, folded over a table of all. Raises ParameterError if papermill injected a name
    that is not declared, a value has another type than declared, or no notebook is running, and WriteError if the
    folder of the parameter `results` is not writable.
    """
    shell = get_ipython()
    if shell is None:
        message = "checked_parameters() reads the cells of a notebook, and no notebook is running here"
        raise ParameterError(f"{message}: pass values instead")
    declared, injected = _parameter_cells(shell)
    lines = (f"  {name}: {kind} = {default}  # {comment}" for name, (kind, default, comment) in declared.items())
    listing = "\n".join(["Its parameters, with their defaults:", *lines])
    for name in injected:
        if name not in declared:
            raise ParameterError(f"This notebook has no parameter {name!r}.{did_you_mean(name, declared)}\n{listing}")
    values, rows, changes = {}, [], []
    for name, (annotation, default, comment) in declared.items():
        if name not in shell.user_ns:
            raise ParameterError(f"Parameter {name!r} was deleted after it was set: run the parameters cell again.")
        value = shell.user_ns[name]
        kind = eval(annotation, {**vars(typing), **shell.user_ns})  # noqa: S307 of a cell that has already run
        try:
            values[name] = as_declared(value, kind)
        except TypeError:
            raise ParameterError(
                f"Parameter {name!r} must be {annotation}, but it is {value!r} ({type(value).__name__})."
                f"{_type_hint(name, value, kind)}\n{listing}"
            ) from None
        changed = values[name] != as_declared(ast.literal_eval(default), kind)
        rows.append(_row("td", name, repr(values[name]), default, comment, bold=changed))
        changes += [f"{name} = {values[name]!r}"] if changed else []
    if "results" in values:
        require_writable(values["results"] or results_root())  # not after an hour of training
    shell.user_ns.update(values)
    pd.options.styler.format.escape = "html"  # names of classes, files, and runs are texts
    summary = html.escape(f"parameters: {', '.join(changes) or 'all at their defaults'}", quote=False)
    head = f"<thead>{_row('th', 'parameter', 'value', 'default', 'meaning')}</thead>"
    table = ["<table>", head, "<tbody>", *rows, "</tbody>", "</table>"]
    folded = "\n".join([f"<details><summary>{summary}</summary>", *table, "</details>"])
    display({"text/html": folded}, raw=True, metadata={TABLE: True})
    return values


def _row(tag: str, *texts: str, bold: bool = False) -> str:
    """A row of an HTML table. bold: the second cell."""
    cells = [html.escape(text, quote=False) for text in texts]
    if bold:
        cells[1] = f"<b>{cells[1]}</b>"
    return "<tr>" + "".join(f'<{tag} style="text-align: left">{cell}</{tag}>' for cell in cells) + "</tr>"


def _parameter_cells(shell: Any) -> tuple[dict[str, tuple[str, str, str]], list[str]]:
    """The latest parameters cell that ran, and the names in the papermill cell that ran after it, if any."""
    history = list(shell.history_manager.input_hist_parsed)  # off under nbval: entries of `linecache` without a time
    cached = [entry for entry in linecache.cache.values() if len(entry) == 4 and entry[1] is None]
    injected: list[str] = []
    for source in reversed(history if any(history) else ["".join(lines) for _, _, lines, _ in cached]):
        if declared := declarations(source):
            return declared, injected
        if not injected and source.lstrip().startswith(INJECTED_HEADING + "\n"):
            injected = [ast.unparse(statement.targets[0]) for statement in ast.parse(source).body]
    example = "    epochs: int = 3  # passes over the training split"
    cell = f"a cell tagged 'parameters' with nothing in it but lines such as:\n{example}"
    raise ParameterError(f"No parameters cell has run in this notebook. Above checked_parameters(), put {cell}")


def _type_hint(name: str, value: Any, annotation: Any) -> str:
    if annotation is bool:
        return " Write True or False, capitalized and without quotes (papermill: -p NAME True)."
    if annotation is str and isinstance(value, bool | int | float):
        return f" papermill's -p reads {value!r} as a number or bool; -r {name} VALUE keeps text."
    if isinstance(value, str):
        return " Lists and the like need papermill's -y or -f (YAML); -p passes only single values."
    if type(value).__module__ != "builtins":
        return " A later cell reused the name: run the parameters cell again."
    return ""
