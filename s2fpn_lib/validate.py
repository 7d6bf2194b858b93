"""Checks of values that a person wrote: conversion to a declared type, and the known name nearest to a mistyped one."""

import contextlib
import difflib
import re
import types
import typing
from collections.abc import Iterable
from typing import Any

# PyYAML follows YAML 1.1, in which 3e-4 is text: a float needs a point and a signed exponent (3.0e-4).
_FLOAT_AS_TEXT = re.compile(r"[-+]?\d+\.?\d*[eE][-+]?\d+")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A suggestion of the known name nearest to `name`, with a leading space; empty if none is near."""
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def as_declared(value: Any, annotation: Any) -> Any:
    """`value` as the annotated type.

    Only conversions that lose nothing are made: an int, or a text such as "3e-4", becomes a float where a float is
    declared, and a list becomes a tuple, because JSON and YAML have no tuples. A bool is not an int.

    Args:
        annotation: a class, a `Literal`, a union, or a tuple, list, set, or dict of these.

    Raises:
        TypeError: the value has another type. The message starts with the value, so that callers can put a name before
            it: "epochs is 'ten' (str); expected int".
    """
    try:
        return _converted(value, annotation)
    except _Mismatch:
        raise TypeError(f"{value!r} ({type(value).__name__}); expected {_describe(annotation)}") from None


class _Mismatch(Exception):
    """A value, or a part of one, does not fit its annotation."""


def _converted(value: Any, annotation: Any) -> Any:
    if annotation is Any:
        return value
    kind, arguments = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
    if kind in (typing.Union, types.UnionType):
        # an exact match first, so that 3 stays an int in `float | int`
        for member in sorted(arguments, key=lambda member: member is not type(value)):
            with contextlib.suppress(_Mismatch):
                return _converted(value, member)
        raise _Mismatch
    if kind is typing.Literal:
        if any(value == choice and type(value) is type(choice) for choice in arguments):
            return value
        raise _Mismatch
    kind = types.NoneType if kind is None else kind
    if kind is tuple and isinstance(value, list):
        value = tuple(value)
    if kind is float and (type(value) is int or (isinstance(value, str) and _FLOAT_AS_TEXT.fullmatch(value))):
        value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise _Mismatch
    if not arguments:
        return value
    if kind is tuple and arguments[-1] is not Ellipsis:
        if len(value) != len(arguments):
            raise _Mismatch
        return tuple(_converted(item, inner) for item, inner in zip(value, arguments, strict=True))
    if kind is dict:
        return {_converted(k, arguments[0]): _converted(v, arguments[1]) for k, v in value.items()}
    return kind(_converted(item, arguments[0]) for item in value)


def _describe(annotation: Any) -> str:
    """The annotation as a message shows it: "int", "tuple[int, int]", "float | None", "one of 'v1', 'v2'"."""
    if typing.get_origin(annotation) is typing.Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(annotation)))
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")
