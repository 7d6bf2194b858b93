"""Checks a notebook's parameters before anything is computed with them, and shows them as a table.

papermill injects whatever it is given: `-p epoch 200` in a notebook whose parameter is called `epochs` trains with the
default, and the results do not show it. `checked_parameters()`, in the cell after the parameters, makes this an error.

The cell tagged `parameters` holds typed assignments of literals and nothing else, each with a comment:

    dataset: str = "auto"  # camvid, cityscapes, roadscenes, or auto: camvid where found
    epochs: int = 3  # passes over the training split

papermill's `inspect_notebook` reads such lines, too. What it lacks: it needs the notebook's file, which a running
kernel does not know; it reads no unions (`int | None`); and it never compares the injected names and values with them.
A kernel sees no cell tags either, so the cell is recognized by its form.
"""

import ast
import html
import linecache
import typing
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from IPython import get_ipython
from IPython.display import display

from s2fpn_lib.validate import as_declared, did_you_mean

INJECTED_HEADING = "# Parameters"  # first line of the cell that papermill inserts below the parameters cell
TABLE = "parameters"  # key in the metadata of the output that holds the table


class ParameterError(ValueError):
    """A parameter is unknown, has the wrong type, or is declared in a form that cannot be checked."""


class Declaration(NamedTuple):
    """What the parameters cell says about a parameter: `name: annotation = default  # comment`."""

    annotation: str
    default: str  # as source code
    comment: str


def declarations(source: str) -> dict[str, Declaration]:
    """The declaration of each name in the source of a parameters cell; empty for any other cell.

    Raises:
        ParameterError: a line of the cell has no type or no comment.
    """
    lines, complete, incomplete = source.splitlines(), {}, []
    try:
        for statement in ast.parse(source).body:
            if not isinstance(statement, ast.Assign | ast.AnnAssign):
                return {}
            ast.literal_eval(statement.value)
            comment = lines[statement.end_lineno - 1].encode()[statement.end_col_offset :].decode().strip("# ")
            if isinstance(statement, ast.AnnAssign) and comment:
                name, annotation, default = map(ast.unparse, (statement.target, statement.annotation, statement.value))
                complete[name] = Declaration(annotation, default, comment)
            else:
                incomplete.append(ast.unparse(statement))
    except (SyntaxError, TypeError, ValueError):
        return {}
    if complete and incomplete:
        raise ParameterError(
            f"The parameters cell has a line without a type or a comment: {incomplete[0]!r}\n"
            "Write every parameter as:  name: type = value  # what it does"
        )
    return complete


def checked_parameters() -> dict[str, Any]:
    """Returns the running notebook's parameters, {name: current value}, in the order of their declaration.

    Call it in the cell after the one tagged `parameters`. It converts the notebook's variables as `as_declared` does
    (an int to a declared float, a list to a tuple), and displays `parameter_table`.

    Raises:
        ParameterError: papermill injected a name that is not declared (the message names the nearest declared one), a
            value has another type than declared, or no notebook is running.
    """
    shell = get_ipython()
    if shell is None:
        raise ParameterError(
            "checked_parameters() reads the cells of a notebook, and no notebook is running here. "
            "In a script, pass the values as arguments instead."
        )
    declared, injected = _parameter_cells(_executed_cells(shell))
    lines = (f"  {name}: {kind} = {default}  # {comment}" for name, (kind, default, comment) in declared.items())
    listing = "\n".join(["Its parameters, with their defaults:", *lines])
    for name in injected:
        if name not in declared:
            raise ParameterError(f"This notebook has no parameter {name!r}.{did_you_mean(name, declared)}\n{listing}")
    values, changed = {}, set()
    for name, (annotation, default, _) in declared.items():
        if name not in shell.user_ns:
            raise ParameterError(f"Parameter {name!r} was deleted after it was set: run the parameters cell again.")
        value, kind = shell.user_ns[name], eval(annotation, {**vars(typing), **shell.user_ns})
        try:
            values[name] = as_declared(value, kind)
        except TypeError:
            raise ParameterError(
                f"Parameter {name!r} must be {annotation}, but it is {value!r} ({type(value).__name__})."
                f"{_type_hint(name, value, kind)}\n{listing}"
            ) from None
        if values[name] != as_declared(ast.literal_eval(default), kind):
            changed.add(name)
    shell.user_ns.update(values)
    display({"text/html": parameter_table(values, declared, changed)}, raw=True, metadata={TABLE: True})
    return values


def parameter_table(values: Mapping[str, Any], declared: Mapping[str, Declaration], changed: Collection[str]) -> str:
    """HTML table with name, value, default, and comment of each parameter. The values in `changed` are bold."""

    def row(texts: Iterable[str], tag: str = "td", bold: bool = False) -> str:
        cells = [html.escape(text, quote=False) for text in texts]
        if bold:
            cells[1] = f"<b>{cells[1]}</b>"
        return "<tr>" + "".join(f'<{tag} style="text-align: left">{cell}</{tag}>' for cell in cells) + "</tr>"

    head = row(("parameter", "value", "default", "meaning"), "th")
    body = [
        row((name, repr(values[name]), default, comment), bold=name in changed)
        for name, (_, default, comment) in declared.items()
    ]
    return "\n".join(["<table>", f"<thead>{head}</thead>", "<tbody>", *body, "</tbody>", "</table>"])


def _executed_cells(shell: Any) -> list[str]:
    """Sources of the cells that have run, oldest first.

    nbval turns IPython's input history off. IPython also stores the cells in `linecache` for its tracebacks, as entries
    without a modification time.
    """
    history = list(shell.history_manager.input_hist_parsed)
    if any(history):
        return history
    entries = [entry for entry in linecache.cache.values() if len(entry) == 4 and entry[1] is None]
    return ["".join(lines) for _, _, lines, _ in entries]


def _parameter_cells(cells: list[str]) -> tuple[dict[str, Declaration], list[str]]:
    """The latest parameters cell that ran, and the names in the papermill cell that ran after it, if any."""
    injected: list[str] = []
    for source in reversed(cells):
        if declared := declarations(source):
            return declared, injected
        if not injected and source.lstrip().startswith(INJECTED_HEADING + "\n"):
            injected = [ast.unparse(statement.targets[0]) for statement in ast.parse(source).body]
    raise ParameterError(
        "No parameters cell has run in this notebook. Above the call of checked_parameters(), put a cell "
        "tagged 'parameters' with nothing in it but lines such as:\n"
        "    epochs: int = 3  # passes over the training split"
    )


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
