"""Rows of the profile of a step, and equal results of the ways of a depthwise convolution. No test asserts a time."""

import pytest
import torch

from s2fpn_lib.benchmark import kernels

CPU = torch.device("cpu")


def test_the_costliest_kernels_of_a_step():
    rows = list(kernels.step_kernels("s2fpn_lite", (32, 64), 2, CPU))
    assert [file for file, _ in rows] == ["profile.jsonl"] * 15
    times = [row["ms"] for _, row in rows]
    assert times == sorted(times, reverse=True)
    assert "aten::convolution_backward" in [row["kernel"] for _, row in rows]


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
@pytest.mark.parametrize("size", [(8, 10), (9, 7)])
def test_shifted_products_are_the_depthwise_convolution(kernel, stride, size):
    x, weight = torch.randn(2, 3, *size), torch.randn(3, 1, kernel, kernel)
    expected = torch.nn.functional.conv2d(x, weight, None, stride, kernel // 2, groups=3)
    torch.testing.assert_close(kernels.shifted(x, weight, stride=stride), expected)


def test_rows_of_the_depthwise_ways(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)  # takes long
    monkeypatch.setattr(kernels, "LAYERS", ((4, 3, 2, 8, 12),))
    rows = [row for _, row in kernels.depthwise_ways(1, CPU, repeats=1, seconds=0, least=1)]
    assert [row["way"] for row in rows] == ["channels_last", "NCHW", "without cuDNN", "shifted"]
    assert all(row["size"] == [8, 12] and row["p50_ms"] > 0 for row in rows)
