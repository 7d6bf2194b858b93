"""Remarks on speed rows follow from their numbers, and rows with a remark have no ratio."""

import pandas as pd
import pytest

from s2fpn_lib.report.speed import with_remarks

ROW = {
    **{"device": "CPU A", "height": 96, "width": 128, "batch": 1, "network": "s2fpn_lite", "revision": "v1"},
    **{"precision": "float32", "spread": 0.02, "cpu_share": 0.99, "fps": 10.0},
}


def row(stage, backend, ms, ratio=None, **changes):
    return {**ROW, "stage": stage, "backend": backend, "p50_ms": ms, "ratio": ratio, **changes}


def remarks(*rows):
    return with_remarks(pd.DataFrame(rows))["remark"].tolist()


@pytest.mark.parametrize(
    ("change", "remark"),
    [
        ({}, ""),
        ({"spread": 0.31}, "noisy: repeats differ by 31.0 %"),
        ({"cpu_share": 0.5}, "busy machine: 50.0 % of its cores"),
        ({"spread": 0.31, "cpu_share": 0.5}, "noisy: repeats differ by 31.0 %; busy machine: 50.0 % of its cores"),
        ({"spread": None, "cpu_share": None}, ""),  # of an earlier version
    ],
)
def test_a_row_says_why_its_time_means_little(change, remark):
    assert remarks(row("network", "eager", 20.0, **change)) == [remark]


def test_end_to_end_is_not_faster_than_the_network_it_contains():
    """The two rows of results/speed with the times 115.85 ms and 100.20 ms."""
    network, whole = row("network", "eager", 115.851, batch=4), row("end to end", "eager", 100.195, batch=4)
    assert remarks(network, whole) == ["", "faster than its network"]
    assert remarks(whole, network) == ["faster than its network", ""]
    others = {"batch": 1}, {"backend": "compile"}, {"precision": "bf16"}, {"device": "CPU B"}
    assert remarks(*({**network, **other} for other in others), whole) == [""] * 5


def test_rows_with_a_remark_have_no_ratio():
    network = [row("network", "published", 80.0, 1.0), row("network", "eager", 20.0, 4.0, spread=0.5)]
    whole = [row("end to end", "published", 90.0, 1.0, cpu_share=0.3), row("end to end", "eager", 30.0, 3.0)]
    ratios = with_remarks(pd.DataFrame(network + whole))["ratio"]
    assert ratios.isna().tolist() == [False, True, True, True]  # the last: compared with a row that has a remark
    assert ratios[0] == 1


def test_other_benchmarks_have_remarks_too():
    steps = pd.DataFrame(
        [{"way": "published", "spread": 0.4, "ratio": 1.0}, {"way": "modern", "spread": 0, "ratio": 3.0}]
    )
    found = with_remarks(steps)
    assert found["remark"].tolist() == ["noisy: repeats differ by 40.0 %", ""]
    assert found["ratio"].isna().all()
