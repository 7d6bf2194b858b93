"""Checks a notebook's parameters before anything is computed with them.

papermill injects whatever it is given: `-p epoch 200` in a notebook whose parameter is called `epochs` trains
with the default and says so nowhere in the results. `checked_parameters()`, in the cell after the parameters,
turns that into an error.

The cell tagged `parameters` declares: only typed assignments of literals, one a line, each with a comment.

    dataset: str = "auto"  # camvid, cityscapes, roadscenes, or auto: camvid where found
    epochs: int = 3  # passes over the training split

That form is also how the cell is recognised (a kernel never sees a cell's tags), so no special heading is
needed. papermill adds its own cell below, which begins with `# Parameters`.
"""

from __future__ import annotations

import ast
import difflib
import io
import linecache
import re
import tokenize
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

INJECTED_HEADING = "# Parameters"
# YAML 1.1, which papermill's -y and -f read, takes 3e-4 for text: it wants 3.0e-4
_FLOAT_THAT_YAML_MISSES = re.compile(r"[-+]?\d+\.?\d*[eE][-+]?\d+")


class ParameterError(ValueError):
    """A parameter that is unknown, has the wrong type, or is declared in a form that cannot be checked."""


@dataclass(frozen=True)
class Declaration:
    """One line of the parameters cell: `name: annotation = default  # comment`."""

    name: str
    annotation: str
    default: Any
    comment: str

    def __str__(self) -> str:
        return f"{self.name}: {self.annotation} = {self.default!r}  # {self.comment}"


def declarations(source: str) -> list[Declaration]:
    """Reads the source of a parameters cell, in order. Empty where `source` is no parameters cell.

    A parameters cell holds assignments of literals to names and nothing else, and at least one line of it is
    typed and commented. Raises `ParameterError` for a line in such a cell that lacks its type or its comment.
    """
    statements = _statements(source)
    if not statements or not all(_is_literal_assignment(statement) for statement in statements):
        return []
    comments = _comments(source)
    typed = [statement for statement in statements if isinstance(statement, ast.AnnAssign)]
    if not any(comments.get(statement.end_lineno) for statement in typed):
        return []
    found: list[Declaration] = []
    for statement in statements:
        if not isinstance(statement, ast.AnnAssign) or not comments.get(statement.end_lineno):
            line = ast.get_source_segment(source, statement)
            raise ParameterError(
                f"The parameters cell has a line without a type or a comment: {line!r}\n"
                "Write every parameter as:  name: type = value  # what it does"
            )
        found.append(
            Declaration(
                name=statement.target.id,
                annotation=ast.unparse(statement.annotation),
                default=ast.literal_eval(statement.value),
                comment=comments[statement.end_lineno],
            )
        )
    return found


def injected_names(source: str) -> list[str] | None:
    """Names that papermill's cell assigns, or None where `source` is not a cell that papermill injected."""
    if source.lstrip().split("\n", 1)[0].strip() != INJECTED_HEADING:
        return None
    statements = _statements(source) or []
    targets = [statement.targets[0] for statement in statements if isinstance(statement, ast.Assign)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def as_float(value: Any) -> Any:
    """An int, or text that YAML should have read as a number (`3e-4`), as float; anything else as it is."""
    if type(value) is int or (isinstance(value, str) and _FLOAT_THAT_YAML_MISSES.fullmatch(value)):
        return float(value)
    return value


def checked_parameters() -> dict[str, Any]:
    """Returns the running notebook's parameters, {name: value in force}, in the order of their declaration.

    Call it in the cell after the one tagged `parameters`. Values are the notebook's variables as they are
    now, after papermill's or the reader's changes. An int given for a float parameter becomes a float (and so
    does the text "3e-4", as which YAML reads that number), a list given for a tuple becomes a tuple; the variable
    is set to the converted value, so that it and the returned one agree.

    Raises `ParameterError` for a name that the parameters cell does not declare (with the nearest declared
    name), for a value of another type than declared, and outside of a notebook.
    """
    shell = _running_shell()
    if shell is None:
        raise ParameterError(
            "checked_parameters() reads the cells of a running notebook, and no notebook is running here. "
            "Run it in JupyterLab or through papermill; in a script, pass the values as arguments instead."
        )
    known, injected = _parameter_cells(_cells_so_far(shell))
    names = [declaration.name for declaration in known]
    for name in injected:
        if name not in names:
            raise ParameterError(f"{_unknown(name, names)}\n{_listing(known)}")
    checked: dict[str, Any] = {}
    for declaration in known:
        name = declaration.name
        if name not in shell.user_ns:
            raise ParameterError(f"Parameter {name!r} was deleted after it was set: run the parameters cell again.")
        value = _converted(declaration, shell.user_ns[name], shell.user_ns, known)
        checked[name] = shell.user_ns[name] = value
    return checked


def _running_shell() -> Any | None:
    """The IPython shell that this code runs in, or None."""
    try:
        from IPython import get_ipython
    except ImportError:
        return None
    return get_ipython()


def _cells_so_far(shell: Any) -> list[str]:
    """Sources of the cells that ran, oldest first.

    JupyterLab and papermill let IPython keep its input history. nbval does not, but the sources are there still:
    IPython hands each cell to `linecache` for its tracebacks, as an entry without a modification time.
    """
    history = list(shell.history_manager.input_hist_parsed)
    if any(history):
        return history
    entries = [entry for entry in linecache.cache.values() if len(entry) == 4 and entry[1] is None]
    return ["".join(lines) for _, _, lines, _ in entries]


def _parameter_cells(history: Sequence[str]) -> tuple[list[Declaration], list[str]]:
    """The latest parameters cell that ran, and the names in the papermill cell that ran after it (if any).

    A papermill cell from before the parameters cell no longer counts: the declarations overwrote its values.
    """
    injected: list[str] | None = None
    for source in reversed(history):
        known = declarations(source)
        if known:
            return known, injected or []
        if injected is None:
            injected = injected_names(source)
    raise ParameterError(
        "No parameters cell has run in this notebook. Above the call of checked_parameters(), put a cell "
        "tagged 'parameters' with nothing in it but lines such as:\n"
        "    epochs: int = 3  # passes over the training split"
    )


def _converted(declaration: Declaration, value: Any, namespace: Mapping[str, Any], known: list[Declaration]) -> Any:
    try:
        annotation = eval(declaration.annotation, {**vars(typing), **namespace})
    except Exception as error:
        raise ParameterError(
            f"Parameter {declaration.name!r}: its type {declaration.annotation!r} cannot be read ({error})."
        ) from error
    try:
        return _as_type(value, annotation)
    except TypeError:
        hint = _type_hint(value, annotation, declaration)
        raise ParameterError(
            f"Parameter {declaration.name!r} must be {declaration.annotation}, "
            f"but it is {value!r} ({type(value).__name__}).{hint}\n{_listing(known)}"
        ) from None


def _as_type(value: Any, annotation: Any) -> Any:
    """`value` as the annotated type (int → float, list → tuple allowed); TypeError where it does not fit."""
    if annotation is Any:
        return value
    if annotation is None:
        annotation = types.NoneType
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return _as_any_of(value, arguments)
    if origin is typing.Literal:
        if any(value == choice and type(value) is type(choice) for choice in arguments):
            return value
        raise TypeError
    kind = origin or annotation
    if kind is tuple and isinstance(value, list):
        value = tuple(value)
    if kind is float:
        value = as_float(value)
    # bool is a subclass of int, yet `epochs = True` is a slip
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError
    if not arguments:
        return value
    if kind is tuple and arguments[-1] is not Ellipsis:
        if len(value) != len(arguments):
            raise TypeError
        return tuple(_as_type(item, inner) for item, inner in zip(value, arguments, strict=True))
    if kind in (list, tuple, set):
        return kind(_as_type(item, arguments[0]) for item in value)
    if kind is dict:
        return {_as_type(k, arguments[0]): _as_type(v, arguments[1]) for k, v in value.items()}
    return value


def _as_any_of(value: Any, choices: Sequence[Any]) -> Any:
    # an exact match first, so that 3 stays an int where `float | int` is declared
    for choice in sorted(choices, key=lambda choice: choice is not type(value)):
        try:
            return _as_type(value, choice)
        except TypeError:
            continue
    raise TypeError


def _type_hint(value: Any, annotation: Any, declaration: Declaration) -> str:
    if annotation is bool:
        return " Write True or False, capitalised and without quotes (papermill: -p NAME True)."
    if annotation is str and isinstance(value, bool | int | float):
        return f" papermill's -p reads {value!r} as a number or bool; -r {declaration.name} VALUE keeps text."
    if value is not None and isinstance(value, str) and annotation is not str:
        return " Lists and the like need papermill's -y or -f (YAML); -p passes only single values."
    if type(value).__module__ != "builtins":
        return " A later cell reused the name: run the parameters cell again."
    return ""


def _unknown(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"This notebook has no parameter {name!r}.{hint}"


def _listing(known: list[Declaration]) -> str:
    return "\n".join(["Its parameters, with their defaults:", *(f"  {declaration}" for declaration in known)])


def _statements(source: str) -> list[ast.stmt] | None:
    try:
        return ast.parse(source).body
    except (SyntaxError, ValueError):
        return None


def _is_literal_assignment(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.AnnAssign):
        target = statement.target
    elif isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        target = statement.targets[0]
    else:
        return False
    if not isinstance(target, ast.Name) or statement.value is None:
        return False
    try:
        ast.literal_eval(statement.value)
    except ValueError:
        return False
    return True


def _comments(source: str) -> dict[int, str]:
    """{line number: text of the comment on that line}."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
