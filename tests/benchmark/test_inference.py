"""The table of speeds: arithmetic and logic, never how fast this machine is."""

from pathlib import Path

import pytest
import torch
import yaml

from s2fpn_lib.benchmark import inference as speed
from s2fpn_lib.benchmark.inference import measure_rows
from s2fpn_lib.benchmark.timing import Timing
from s2fpn_lib.checkpoint import released_names
from s2fpn_lib.validate import as_declared
from s2fpn_lib.workbench.pipeline import declared_types

PROJECT = Path(__file__).resolve().parents[2]


def rows(**options):
    return list(measure_rows(repeats=1, seconds=0, num_classes=3, **options))


def test_rows_say_what_was_measured():
    found = rows(names=["s2fpn_lite"], sizes=[(32, 64)], batches=[1, 2])
    assert [(r["batch"], r["stage"], r["backend"]) for r in found] == [
        (batch, stage, backend)
        for batch in (1, 2)
        for stage in ("network", "end to end")
        for backend in ("published", "eager")
    ]
    for row in found:
        assert row["fps"] == pytest.approx(1e3 * row["batch"] / row["p50_ms"], rel=1e-2, abs=0.01)
        assert row["p90_ms"] >= row["p50_ms"] > 0
        assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
        assert (row["ratio"] == 1) == (row["backend"] == "published")
        assert (row["max_difference"] is None) == (row["backend"] == "published")
        assert row["peak_mb"] >= 0
        assert "threads" in row["device"]
    assert found[4]["gmacs"] == pytest.approx(2 * found[0]["gmacs"], abs=2e-3)


def test_eval_fps_is_a_row_of_its_own():
    found = rows(names=["s2fpn_lite"], sizes=[(32, 32)], backends=["published"], stages=["network"], eval_fps_calls=2)
    assert [(row["stage"], row["backend"]) for row in found] == [("network", "published"), ("eval_fps", "published")]
    assert found[1]["calls"] == 2
    assert found[1]["fps"] > 0


def test_without_the_published_row_there_is_no_ratio():
    assert {row["ratio"] for row in rows(names=["s2fpn_lite"], sizes=[(32, 32)], backends=["eager"])} == {None}


def test_a_plain_baseline_is_one_way_to_run():
    found = rows(names=["lraspp_mobilenet_v3_large"], sizes=[(64, 64)])
    assert [(r["revision"], r["backend"], r["stage"]) for r in found] == [
        ("", "eager", "network"),
        ("", "eager", "end to end"),
    ]


def test_a_released_weight_is_a_network():
    (row,) = rows(names=released_names()[:1], sizes=[(64, 64)], backends=["eager"], stages=["network"])
    assert (row["network"], row["revision"]) == ("s2fpn_lite-camvid", "v1")


def test_the_timed_network_is_the_scored_one(monkeypatch):
    """Every way to run gives logits at the input's size."""
    shapes = []

    def record(calls, device, **_):
        shapes.extend(tuple(call().shape) for call in calls.values())
        return {way: Timing(((1.0,),)) for way in calls}

    monkeypatch.setattr(speed, "time_in_turns", record)
    rows(names=["s2fpn_lite"], sizes=[(64, 96)], backends=["published", "published no_grad", "eager"])
    rows(names=["lraspp_mobilenet_v3_large"], sizes=[(64, 96)])
    assert shapes == [(1, 3, 64, 96)] * 3 + [(1, 64, 96)] * 3 + [(1, 3, 64, 96), (1, 64, 96)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": ["bisenet"]}, r"unknown network 'bisenet'\. Known: s2fpn18, .*deeplabv3_resnet50"),
        ({"backends": ["tensorrt"]}, "unknown backend 'tensorrt'. Known: published, published no_grad, eager"),
        ({"stages": ["loading"]}, "unknown stage 'loading'. Known: network, end to end"),
    ],
)
def test_unknown_names_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        rows(**{"names": ["s2fpn_lite"], "sizes": [(32, 32)], **change})


@pytest.mark.cuda
def test_cuda_events_and_graphs():
    found = rows(names=["s2fpn_lite"], sizes=[(64, 96)], device=torch.device("cuda"), precisions=["fp16"])
    assert all(row["p50_ms"] > 0 and row["peak_mb"] > 0 for row in found)


@pytest.mark.parametrize("path", sorted((PROJECT / "results" / "speed").glob("*.yaml")), ids=lambda path: path.stem)
def test_parameter_files_fit_the_notebook(path):
    types = declared_types(PROJECT / "notebooks" / "12_speed.ipynb")
    for name, value in yaml.safe_load(path.read_text()).items():
        as_declared(value, eval(types[name]))  # raises TypeError for another type
