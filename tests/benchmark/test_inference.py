"""The rows of the speed tables: arithmetic and logic, and the score of what was timed. No test asserts a time."""

import hashlib
from pathlib import Path

import pytest
import torch

from s2fpn_lib.benchmark import inference as speed
from s2fpn_lib.benchmark.inference import measure_rows, measure_speed_and_accuracy
from s2fpn_lib.benchmark.timing import Timing
from s2fpn_lib.checkpoint import find_weights, load_model, released_names
from s2fpn_lib.data import open_dataset
from s2fpn_lib.evaluate import evaluate
from s2fpn_lib.validate import as_declared

PROJECT = Path(__file__).resolve().parents[2]


def rows(**options):
    return list(measure_rows(repeats=1, seconds=0, num_classes=3, **options))


@pytest.fixture
def fixed_times(monkeypatch):
    """Runs each call once instead of timing it: 2 s for the published implementation, 1 s for the other methods."""

    def run_once(calls, device, **_):
        for call in calls.values():
            call()
        seconds = {method: ((2.0 if method[0] == "published" else 1.0,),) for method in calls}
        return {method: Timing(times, times, 1.0) for method, times in seconds.items()}

    monkeypatch.setattr(speed, "time_in_turns", run_once)


def test_rows_name_what_was_measured(fixed_times):
    found = rows(names=["s2fpn_lite"], sizes=[(32, 32)], batches=[1, 2])
    assert [(r["batch"], r["stage"], r["backend"]) for r in found] == [
        (batch, stage, backend)
        for batch in (1, 2)
        for stage in ("network", "end to end")
        for backend in ("published", "eager")
    ]
    for row in found:
        published = row["backend"] == "published"
        assert row["fps"] == row["batch"] / (2 if published else 1)
        assert row["ratio_low"] == row["ratio"] == row["ratio_high"] == (1 if published else 2)
        assert (row["max_difference"] is None) == published
        assert "threads" in row["device"]
        assert row["instruction_set"]
    assert found[4]["gmacs"] == pytest.approx(2 * found[0]["gmacs"], abs=2e-3)


def test_eval_fps_is_a_row_of_its_own(fixed_times):
    found = rows(names=["s2fpn_lite"], sizes=[(32, 32)], backends=["published"], stages=["network"], eval_fps_calls=2)
    assert [(row["stage"], row["backend"]) for row in found] == [("network", "published"), ("eval_fps", "published")]
    assert found[1]["calls"] == 2
    assert found[1]["fps"] > 0


def test_a_baseline_has_one_method(fixed_times):
    found = rows(names=["lraspp_mobilenet_v3_large"], sizes=[(64, 64)])
    assert [(r["revision"], r["backend"], r["stage"]) for r in found] == [
        ("", "eager", "network"),
        ("", "eager", "end to end"),
    ]


def test_a_released_weight_is_a_network(fixed_times):
    (row,) = rows(names=released_names()[:1], sizes=[(64, 64)], backends=["eager"], stages=["network"])
    assert (row["network"], row["revision"]) == ("s2fpn_lite-camvid", "v2")
    assert row["ratio"] is None  # without a row of the published implementation


def test_the_timed_network_is_the_scored_one(monkeypatch):
    """Each method gives logits at the input's size, alone and inside the end-to-end call."""
    shapes = []

    def record(calls, device, **_):
        shapes.extend(tuple(each.shape) for each in (call() for call in calls.values()))
        return {method: Timing(((1.0,),)) for method in calls}

    monkeypatch.setattr(speed, "time_in_turns", record)
    quick = {"sizes": [(32, 64)], "stages": ["network"]}
    rows(names=["s2fpn_lite"], backends=["published", "published no_grad", "eager"], **quick)
    rows(names=["lraspp_mobilenet_v3_large"], **quick)
    assert shapes == [(1, 3, 32, 64)] * 4
    inside = []
    monkeypatch.setattr(speed, "class_ids", lambda logits: inside.append(tuple(logits.shape)) or logits)
    monkeypatch.setattr(speed, "time_in_turns", lambda calls, *_, **__: [call() for call in calls.values()] and {})
    rows(names=["s2fpn_lite"], sizes=[(32, 64)], backends=["published", "eager"])
    assert inside == [(1, 3, 32, 64)] * 2


def test_end_to_end_contains_the_network():
    """Both times are of the same calls, so that no noise can make the whole faster than its part."""
    found = list(measure_rows(["s2fpn_lite"], [(32, 32)], repeats=2, seconds=0, least=2, num_classes=3))
    assert [(row["stage"], row["calls"]) for row in found] == [("network", 4)] * 2 + [("end to end", 4)] * 2
    for network, whole in zip(found[:2], found[2:], strict=True):
        assert network["p50_ms"] <= whole["p50_ms"]
        assert network["p90_ms"] <= whole["p90_ms"]
        assert 0 < network["cpu_share"] == whole["cpu_share"] <= 1


def test_a_run_folder_is_a_network_with_its_checkpoint(fixed_times, tmp_path):
    source = find_weights("s2fpn_lite-camvid")
    (tmp_path / "last.safetensors").write_bytes(source.read_bytes())
    (row,) = rows(names=[str(tmp_path)], sizes=[(64, 96)], backends=["eager"], stages=["network"])
    sha = hashlib.sha256(source.read_bytes()).hexdigest()[:10]
    assert (row["network"], row["revision"], row["checkpoint_sha"]) == ("s2fpn_lite", "v2", sha)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": ["bisenet"]}, r"unknown network 'bisenet'\. Known: s2fpn18, .*deeplabv3_resnet50"),
        ({"backends": ["tensorrt"]}, "unknown backend 'tensorrt'. Known: published, published no_grad, eager"),
        ({"stages": ["loading"]}, "unknown stage 'loading'. Known: network, end to end"),
    ],
)
def test_unknown_names_are_errors(change, message):
    with pytest.raises(ValueError, match=message):
        rows(**{"names": ["s2fpn_lite"], "sizes": [(32, 32)], **change})


def test_accuracy_rows_hold_the_score_of_the_evaluation(fixed_times):
    model = load_model("s2fpn_lite-camvid")
    val, train = (open_dataset("roadscenes", split=split, cache=False) for split in ("val", "train"))
    quiet = {"limit": 2, "progress": False}
    quick = {"limit": 2, "repeats": 1, "seconds": 0, "least": 1}
    rows = list(measure_speed_and_accuracy(model, val, train, precisions=["float32", "bf16", "int8"], **quick))
    assert [(row["backend"], row["precision"]) for row in rows] == [("eager", "float32"), ("eager", "bf16")]
    exact, rounded = rows
    assert exact["miou"] == pytest.approx(evaluate(model, val, **quiet).confusion.miou(), abs=1e-4)
    assert exact["changed"] < 1e-4 < rounded["changed"] < 0.05
    assert exact["protocol"] == "roadscenes"
    assert exact["fps"] == exact["own_ratio"] == rounded["own_ratio"] == 1
    assert rounded["miou_cost"] == pytest.approx(
        evaluate(model, val, **quiet).confusion.miou() - rounded["miou"], abs=1e-4
    )
    assert exact["float_layers"] == ""


def test_calibration_on_the_scored_images_is_refused():
    val = open_dataset("roadscenes", split="val", cache=False)
    with pytest.raises(ValueError, match="share images"):
        next(measure_speed_and_accuracy(load_model("s2fpn_lite-camvid"), val, val))


@pytest.mark.cuda
def test_cuda_events_and_graphs():
    found = rows(names=["s2fpn_lite"], sizes=[(64, 96)], device=torch.device("cuda"), precisions=["fp16"])
    assert all(row["p50_ms"] > 0 and row["peak_mb"] > 0 for row in found)


@pytest.mark.parametrize("path", sorted((PROJECT / "results" / "speed").glob("*.yaml")), ids=lambda path: path.stem)
def test_parameter_files_fit_the_notebook(path):
    import yaml  # a GPU machine may lack these two packages

    from s2fpn_lib.workbench.pipeline import declared_types

    types = declared_types(PROJECT / "notebooks" / "12_speed.ipynb")
    for name, value in yaml.safe_load(path.read_text()).items():
        as_declared(value, eval(types[name]))  # raises TypeError for another type
