"""Checks of values that a person wrote: coercion to a declared type, and the nearest known name for a mistyped one."""

import difflib
import re
import types
import typing
from collections.abc import Iterable, Sequence
from typing import Any

# PyYAML follows YAML 1.1, in which 3e-4 is text: a float needs a point and a signed exponent (3.0e-4).
_FLOAT_AS_TEXT = re.compile(r"[-+]?\d+\.?\d*[eE][-+]?\d+")


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """A sentence with a leading space that suggests the known name nearest to `name`; empty where none is near."""
    near = difflib.get_close_matches(str(name), list(known), n=1, cutoff=cutoff)
    return f" Did you mean {near[0]!r}?" if near else ""


def as_declared(value: Any, annotation: Any) -> Any:
    """`value` as the annotated type.

    Conversions that lose nothing are made: an int (and the text "3e-4", which YAML does not read as a number) becomes a
    float where a float is declared, and a list becomes a tuple, as JSON and YAML have no tuples. A bool is no int.

    Args:
        annotation: a class, a `Literal`, a union, or a tuple, list, set, or dict of these.

    Raises:
        TypeError: the value has another type; the message names both.
    """
    if annotation is Any:
        return value
    kind, arguments = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
    if kind in (typing.Union, types.UnionType):
        return _as_member(value, arguments, annotation)
    if kind is typing.Literal:
        if any(value == choice and type(value) is type(choice) for choice in arguments):
            return value
        raise _mismatch(value, annotation)
    kind = types.NoneType if kind is None else kind
    if kind is tuple and isinstance(value, list):
        value = tuple(value)
    if kind is float and (type(value) is int or (isinstance(value, str) and _FLOAT_AS_TEXT.fullmatch(value))):
        value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise _mismatch(value, annotation)
    if not arguments:
        return value
    if kind is tuple and arguments[-1] is not Ellipsis:
        if len(value) != len(arguments):
            raise _mismatch(value, annotation)
        return tuple(as_declared(item, inner) for item, inner in zip(value, arguments, strict=True))
    if kind is dict:
        return {as_declared(k, arguments[0]): as_declared(v, arguments[1]) for k, v in value.items()}
    return kind(as_declared(item, arguments[0]) for item in value)


def _as_member(value: Any, members: Sequence[Any], annotation: Any) -> Any:
    """`value` as the first member of a union that fits; an exact match first, so that 3 stays an int in `float | int`."""
    for member in sorted(members, key=lambda member: member is not type(value)):
        try:
            return as_declared(value, member)
        except TypeError:
            continue
    raise _mismatch(value, annotation)


def _mismatch(value: Any, annotation: Any) -> TypeError:
    declared = annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")
    return TypeError(f"{value!r} ({type(value).__name__}) where {declared} is declared")
