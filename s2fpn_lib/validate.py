"""Checks of values that a person wrote: YAML files, declared types, the known name nearest to a mistyped one."""

import contextlib
import difflib
import math
import re
import types
import typing
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

MOST_YAML = 250_000  # bytes of a file, and values in it with every alias written out: some seconds of reading
# PyYAML follows YAML 1.1, in which 3e-4 is text: a float needs a point and a signed exponent (3.0e-4).
_FLOAT_AS_TEXT = re.compile(r"[-+]?\d+\.?\d*[eE][-+]?\d+")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A suggestion of the known name nearest to `name`, with a leading space; empty if none is near."""
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def unprintable(text: str) -> bool:
    """Whether a text holds control characters, line breaks, or marks that reverse the direction of what follows."""
    reversing = {*"\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"}
    return any(each in reversing or unicodedata.category(each) in ("Cc", "Cs", "Zl", "Zp") for each in text)


def as_text(value: Any) -> str:
    """`value` to put into HTML or Markdown, where it is shown as it is: no element, link, emphasis, or formula."""
    return re.sub(r"[][&<>\"'`*_{}()#!|~$\\]", lambda found: f"&#{ord(found[0])};", " ".join(str(value).split()))


def read_yaml(path: Path) -> Any:
    """The value in a YAML file of plain values. Raises FileNotFoundError, and ValueError for any other file:
    other tags, a repeated key (of which YAML silently takes the last), or more than `MOST_YAML` bytes or values."""
    import yaml  # the core works without it

    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is not a regular file")
        with path.open("rb") as file:
            content = file.read(MOST_YAML + 1)
        if len(content) > MOST_YAML:
            raise ValueError(f"it has more than {MOST_YAML} bytes")
        text = content.decode("utf-8-sig")
        _count(yaml.compose(text, yaml.SafeLoader), {})
        return yaml.safe_load(text)
    except FileNotFoundError:
        raise
    except (yaml.YAMLError, ValueError, OSError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as YAML: {error}") from error


def _count(node: Any, known: dict[int, float]) -> float:
    """Number of values in a YAML node; ValueError for a repeated key, or for aliases that make them too many."""
    if id(node) not in known:
        known[id(node)] = math.inf  # an alias inside of what it stands for
        items = node.value if isinstance(getattr(node, "value", None), list) else []
        keys = Counter(str(item[0].value) for item in items if isinstance(item, tuple))
        if repeated := [key for key, count in keys.items() if count > 1]:
            raise ValueError(f"{', '.join(repeated)} occurs more than once, line {node.start_mark.line + 1}")
        parts = (part for item in items for part in (item if isinstance(item, tuple) else [item]))
        known[id(node)] = 1 + sum(_count(part, known) for part in parts)
    if known[id(node)] > MOST_YAML:
        raise ValueError(f"its aliases (*name) repeat values without end, or more than {MOST_YAML} times")
    return known[id(node)]


def as_declared(value: Any, annotation: Any) -> Any:
    """`value` as the type of an annotation: a class, `Literal`, or union, or a tuple, list, set, or dict of these.

    Only conversions that lose nothing are made: an int, or a text such as "3e-4", becomes a float where a float is
    declared, and a list becomes a tuple, because JSON and YAML have no tuples. A bool is not an int.

    Raises TypeError for another type: "'ten' (str); expected int", before which a caller can put a name.
    """
    try:
        return _converted(value, annotation)
    except TypeError:
        if typing.get_origin(annotation) is typing.Literal:
            expected = "one of " + ", ".join(map(repr, typing.get_args(annotation)))
        else:
            expected = annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")
        raise TypeError(f"{value!r:.200} ({type(value).__name__}); expected {expected}") from None


def _converted(value: Any, annotation: Any) -> Any:
    """`as_declared`, whose error for a value, or a part of one, has no message yet."""
    if annotation is Any:
        return value
    kind, arguments = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
    if kind in (typing.Union, types.UnionType):
        # an exact match first, so that 3 stays an int in `float | int`
        for member in sorted(arguments, key=lambda member: member is not type(value)):
            with contextlib.suppress(TypeError):
                return _converted(value, member)
        raise TypeError
    if kind is typing.Literal:
        if any(value == choice and type(value) is type(choice) for choice in arguments):
            return value
        raise TypeError
    kind = types.NoneType if kind is None else kind
    if kind is tuple and isinstance(value, list):
        value = tuple(value)
    if kind is float and (type(value) is int or (isinstance(value, str) and _FLOAT_AS_TEXT.fullmatch(value))):
        value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError
    if not arguments:
        return value
    if kind is tuple and arguments[-1] is not Ellipsis:
        if len(value) != len(arguments):
            raise TypeError
        return tuple(_converted(item, inner) for item, inner in zip(value, arguments, strict=True))
    if kind is dict:
        return {_converted(k, arguments[0]): _converted(v, arguments[1]) for k, v in value.items()}
    return kind(_converted(item, arguments[0]) for item in value)
