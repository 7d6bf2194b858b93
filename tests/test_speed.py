"""The stopwatch and the table of speeds: arithmetic and logic, never how fast this machine is."""

import itertools

import pytest
import torch

from s2fpn_lib import speed
from s2fpn_lib.speed import Timing, measure_rows, time_calls

CPU = torch.device("cpu")


def test_percentiles_and_spread_are_the_closed_forms():
    timing = Timing(((1.0, 2.0, 9.0), (2.0, 3.0, 4.0), (4.0, 4.0, 5.0)))
    assert timing.p50 == 3.0
    assert timing.p90 == 9.0
    assert timing.spread == (4.0 - 2.0) / 3.0


def test_warm_up_lasts_until_two_medians_agree(monkeypatch):
    # 3 calls a median: 9, 5, 5 -> three medians; then the measured calls
    durations = itertools.chain([9, 9, 9, 5, 5, 5, 5, 5, 5], itertools.repeat(7))
    taken = []

    def stopwatch(call):
        taken.append(next(durations))
        return taken[-1]

    monkeypatch.setattr(speed, "_cpu_seconds", stopwatch)
    timing = time_calls(lambda: None, CPU, repeats=2, seconds=0, calls=4)
    assert timing.repeats == ((7, 7, 7, 7),) * 2
    assert len(taken) == 9 + 8


def test_warm_up_of_something_that_never_settles_ends(monkeypatch):
    monkeypatch.setattr(speed, "WARMUP_SECONDS", 0.0)
    durations = itertools.cycle([1, 1, 1, 2, 2, 2])
    monkeypatch.setattr(speed, "_cpu_seconds", lambda call: next(durations))
    assert len(time_calls(lambda: None, CPU, repeats=1, seconds=0, calls=2).repeats[0]) == 2


def rows(**options):
    return list(measure_rows(repeats=1, seconds=0, num_classes=3, **options))


def test_rows_say_what_was_measured():
    found = rows(names=["s2fpn_lite"], sizes=[(32, 64)], batches=[1, 2])
    assert [(r["batch"], r["backend"], r["stage"]) for r in found] == [
        (batch, backend, stage)
        for batch in (1, 2)
        for backend in ("published", "eager")
        for stage in ("network", "end to end")
    ]
    for row in found:
        assert row["fps"] == pytest.approx(1e3 * row["batch"] / row["p50_ms"], rel=1e-2)
        assert row["p90_ms"] >= row["p50_ms"] > 0
        assert (row["ratio"] == 1) == (row["backend"] == "published")
        assert (row["max_difference"] is None) == (row["backend"] == "published")
        assert "threads" in row["device"]
    assert found[4]["gmacs"] == pytest.approx(2 * found[0]["gmacs"], abs=2e-3)


def test_without_the_published_row_there_is_no_ratio():
    assert {row["ratio"] for row in rows(names=["s2fpn_lite"], sizes=[(32, 32)], backends=["eager"])} == {None}


def test_a_plain_baseline_is_one_way_to_run():
    found = rows(names=["lraspp_mobilenet_v3_large"], sizes=[(64, 64)])
    assert [(r["revision"], r["backend"], r["stage"]) for r in found] == [
        ("", "eager", "network"),
        ("", "eager", "end to end"),
    ]


def test_the_timed_network_is_the_scored_one(monkeypatch):
    """Every way to run gives logits at the input's size."""
    shapes = []

    def record(call, device, **_):
        result = call()
        shapes.append(tuple(result.shape))
        return Timing(((1.0,),))

    monkeypatch.setattr(speed, "time_calls", record)
    rows(names=["s2fpn_lite", "fcn_resnet50"], sizes=[(64, 96)])
    assert shapes == [(1, 3, 64, 96), (1, 64, 96)] * 3


def test_unknown_networks_are_named():
    with pytest.raises(ValueError, match=r"unknown network 'bisenet'\. Known: s2fpn18, .*deeplabv3_resnet50"):
        rows(names=["bisenet"], sizes=[(32, 32)])


@pytest.mark.cuda
def test_cuda_events_and_graphs():
    found = rows(names=["s2fpn_lite"], sizes=[(64, 96)], device=torch.device("cuda"), precisions=["fp16"])
    assert all(row["p50_ms"] > 0 and row["peak_mb"] > 0 for row in found)
