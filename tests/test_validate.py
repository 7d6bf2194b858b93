"""Conversion to declared types and suggestions for mistyped names."""

from typing import Any, Literal

import pytest

from s2fpn_lib.validate import as_declared, did_you_mean


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (3, float, 3.0),
        ("3e-4", float, 3e-4),
        (3, float | int, 3),
        (3, float | None, 3.0),
        (None, float | None, None),
        ([360, 480], tuple[int, int], (360, 480)),
        ([1, 2.5], tuple[float, ...], (1.0, 2.5)),
        ([1, 2], list[float], [1.0, 2.0]),
        ({"a": [1, 2]}, dict[str, tuple[int, ...]], {"a": (1, 2)}),
        ("v1", Literal["v1", "v2"], "v1"),
        (True, bool, True),
        (object, Any, object),
    ],
)
def test_conversions_that_lose_nothing(value, annotation, expected):
    converted = as_declared(value, annotation)
    assert converted == expected
    assert type(converted) is type(expected)


@pytest.mark.parametrize(
    ("value", "annotation", "message"),
    [
        (3, str, r"3 \(int\); expected str"),
        (True, int, r"True \(bool\); expected int"),
        (1, bool, r"1 \(int\); expected bool"),
        (3.5, int, r"3\.5 \(float\); expected int"),
        ("3", float, r"'3' \(str\); expected float"),
        ("x", float | None, r"'x' \(str\); expected float \| None"),
        ([1, "x"], tuple[int, int], r"\[1, 'x'\] \(list\); expected tuple\[int, int\]"),
        ([1, 2, 3], tuple[int, int], r"\[1, 2, 3\] \(list\); expected tuple\[int, int\]"),
        ("v3", Literal["v1", "v2"], r"'v3' \(str\); expected one of 'v1', 'v2'"),
        (1, Literal[True, 2], r"1 \(int\); expected one of True, 2"),
    ],
)
def test_mismatches_name_value_and_type(value, annotation, message):
    with pytest.raises(TypeError, match=f"^{message}$"):
        as_declared(value, annotation)


def test_did_you_mean():
    assert did_you_mean("epoch", ["epochs", "model"]) == " Did you mean 'epochs'?"
    assert did_you_mean("zebra", ["epochs", "model"]) == ""
