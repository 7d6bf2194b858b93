"""The command for a GPU, on a CPU: its budget, its files, and what happens when a task fails."""

import os
import re
import subprocess
import sys
import time
import zipfile
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from s2fpn_lib import train
from s2fpn_lib.benchmark import gpu, ways
from s2fpn_lib.benchmark.timing import Timing
from s2fpn_lib.checkpoint import load_model
from s2fpn_lib.config import TrainConfig
from s2fpn_lib.data.roadscenes.dataset import RoadScenes
from s2fpn_lib.evaluate import Evaluation
from s2fpn_lib.model import build_model
from s2fpn_lib.report.collect import collect_speed, with_remarks
from s2fpn_lib.runs import PROJECT, read_json, read_rows
from tests import gpu_rows

CPU = torch.device("cpu")
ENVIRONMENT = {"part": "", "task": "environment", "status": "done"}
ENVIRONMENT |= {"gpus": ["H100"], "cpu": "Xeon", "torch": "2.11", "time": "2026-11-27T18:52:04+00:00"}


def log_of(folder):
    return [(row["part"], row["status"]) for row in read_rows(folder / "tasks.jsonl")]


def test_the_command_keeps_its_budget(tmp_path):
    """On a busy machine it may leave parts out, and where it does not end by itself, it is ended."""
    command = [sys.executable, "-m", "s2fpn_lib.benchmark.gpu", "--device", "cpu", "--minutes", "0.3"]
    start = time.monotonic()
    status = subprocess.run([*command, "--out", str(tmp_path)], cwd=PROJECT, capture_output=True).returncode
    if status == 0:
        assert time.monotonic() - start < 0.3 * 60 + 1
        assert {part for part, _ in log_of(tmp_path)} <= {"", "right", "fast", "train"}
        assert "GPU results" in (tmp_path / "summary.html").read_text()
    else:
        assert status == 1
        assert time.monotonic() - start >= 0.3 * 60


@pytest.fixture
def command(monkeypatch, tmp_path):
    """command(minutes, supervise, *more): calls `main` with another `supervise`; returns the budget's exit status."""
    exits = []
    monkeypatch.setattr(gpu, "own_age", lambda: 0.0)
    monkeypatch.setattr(gpu.os, "_exit", exits.append)
    monkeypatch.setattr(gpu.signal, "signal", lambda *_: None)

    def run_command(minutes, supervise, *more):
        monkeypatch.setattr(gpu, "supervise", supervise)
        gpu.main(["--device", "cpu", "--minutes", str(minutes), "--out", str(tmp_path), *more])
        return exits

    return run_command


def test_what_a_part_leaves_goes_to_the_next_ones(command, tmp_path):
    """Of 100 s, 10 are kept, and no part needs any time: shares of 2, 3, and 4 of 9; of 3 and 4 of 7; and all."""
    given = []
    assert command(100 / 60, lambda part, out, device, seconds: given.append((part, seconds))) == []
    assert [part for part, _ in given] == ["right", "fast", "train"]
    assert [seconds for _, seconds in given] == pytest.approx([90 * 2 / 9, 90 * 3 / 7, 90], rel=0.2)
    assert (tmp_path / "summary.html").exists()


def test_the_training_takes_the_splits_of_the_command(command, tmp_path, monkeypatch, scenes):
    """Three commands with different splits are the twins of one training."""
    monkeypatch.setenv("S2FPN_GPU_SPLITS", "")
    command(1, lambda *_: None, "--splits", "trainval:drive!=park", "trainval:drive=park")
    monkeypatch.setattr(gpu, "fitted", lambda config, seconds: (config.replace(epochs=1), {}))
    for _ in range(2):  # the second call finds a finished run
        list(gpu.train_stage("lite-camvid-gpu-own", CPU, time.monotonic() + 600, tmp_path))
    config = read_json(tmp_path / "lite-camvid-gpu-own" / "config.json")
    assert (config["train_split"], config["val_split"]) == ("trainval:drive!=park", "trainval:drive=park")


def test_the_budget_ends_the_process(command):
    assert command(0.001, lambda *_: time.sleep(0.3)) == [1]


def test_the_tests_marked_cuda_give_rows(tmp_path, monkeypatch):
    """A test that an earlier process has started is not started again."""
    monkeypatch.setenv("PYTEST_ADDOPTS", "-k 'test_logits and lite and not lite1 and not lite2'")
    known = "tests/test_cuda.py::test_logits[s2fpn_lite-v1]"
    gpu.append_row(tmp_path / "tasks.jsonl", {"part": "right", "task": known, "status": "started"})
    gpu.supervise("right", tmp_path, "cpu", 250.0)
    row = {"check": "tests/test_cuda.py::test_logits", "case": "s2fpn_lite-v2", "relative": 0.0, "ok": True}
    assert read_rows(tmp_path / "right.jsonl") == [row]  # the same device: no difference
    assert log_of(tmp_path)[1:] == [("right", "started"), ("right", "done")]


def test_a_test_that_fails_has_a_row_with_its_error(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_rows, "FOLDER", tmp_path)
    options = {"keywords": {}, "location": ("", 0, ""), "user_properties": [("relative", 0.5)]}
    for when, outcome in (("setup", "passed"), ("call", "failed"), ("call", "skipped")):
        options |= {"when": when, "outcome": outcome, "longrepr": "assert 0.5 < 0.1"}
        gpu_rows.pytest_runtest_logreport(pytest.TestReport("tests/test_cuda.py::test_a[x-v1]", **options))
    row = {"check": "tests/test_cuda.py::test_a", "case": "x-v1", "relative": 0.5, "ok": False}
    assert read_rows(tmp_path / "right.jsonl") == [{**row, "error": "assert 0.5 < 0.1"}]


def test_a_part_ends_with_its_share_of_the_time(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "marked_tests", lambda: ["-c", "import time; time.sleep(60)"])
    start = time.monotonic()
    gpu.supervise("right", tmp_path, "cpu", 0.5)
    assert time.monotonic() - start < 30
    assert log_of(tmp_path) == [("right", "stopped: its share of the time was used")]


def test_a_part_starts_again_where_the_gpu_does_not_answer(tmp_path, monkeypatch):
    statuses = iter((gpu.BROKEN, 1))
    monkeypatch.setattr(gpu, "marked_tests", lambda: ["-c", f"import os; os._exit({next(statuses)})"])
    gpu.supervise("right", tmp_path, "cpu", 250.0)
    assert log_of(tmp_path) == [("right", "exit status 77, again"), ("right", "exit status 1")]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run(tasks, seconds): the rows of tasks.jsonl after these tasks."""

    def run_tasks(tasks, seconds=60.0):
        monkeypatch.setitem(gpu.TASKS, "fast", lambda device, end, out: tasks)
        gpu.run_part("fast", tmp_path, "cpu", time.time() + seconds)
        return [row for row in read_rows(tmp_path / "tasks.jsonl") if row["task"]]

    return run_tasks


def two_rows_then_fail(error=None):
    yield "speed.jsonl", {"number": 1}
    yield "speed.jsonl", {"number": 2}
    if error:
        raise error


def test_a_failure_is_recorded_and_the_part_goes_on(run, tmp_path):
    log = run({"a": (0, partial(two_rows_then_fail, RuntimeError("out of memory"))), "b": (0, two_rows_then_fail)})
    assert [(row["task"], row["status"]) for row in log if row["status"] != "started"] == [
        ("a", "failed"),
        ("b", "done"),
    ]
    assert log[1]["error"] == "RuntimeError: out of memory"
    assert [row["number"] for row in read_rows(tmp_path / "speed.jsonl")] == [1, 2, 1, 2]


def test_a_task_that_does_not_fit_is_left_out(run):
    log = run({"long": (100, two_rows_then_fail), "short": (1, two_rows_then_fail)}, seconds=10)
    assert log[0]["status"] == "left out: needs about 100 s of 10"
    assert log[-1] == {"part": "fast", "task": "short", "status": "done", "seconds": 0.0}


def test_a_part_that_starts_again_goes_on_after_the_task_that_broke_it(run, tmp_path):
    gpu.append_row(tmp_path / "tasks.jsonl", {"part": "fast", "task": "a", "status": "started"})
    run({"a": (0, two_rows_then_fail), "b": (0, two_rows_then_fail)})
    assert len(read_rows(tmp_path / "speed.jsonl")) == 2


def test_the_budget_starts_with_the_process():
    elapsed = subprocess.run(["ps", "-o", "etimes=", "-p", str(os.getpid())], capture_output=True, text=True).stdout
    assert gpu.own_age() == pytest.approx(float(elapsed), abs=3)


def test_archives_become_one_folder(tmp_path):
    for number in (1, 2):
        with zipfile.ZipFile(tmp_path / f"camvid-{number}.zip", "w") as archive:
            archive.writestr(f"camvid/train/{number}.webp", "x")
    both = gpu.unpacked(tmp_path, tmp_path / "both") / "camvid" / "train"
    assert sorted(path.name for path in both.iterdir()) == ["1.webp", "2.webp"]
    gpu.unpacked(tmp_path / "camvid-2.zip", tmp_path / "one")
    assert [path.name for path in (tmp_path / "one" / "camvid" / "train").iterdir()] == ["2.webp"]
    assert gpu.unpacked(tmp_path / "both", tmp_path / "unused") == tmp_path / "both"


def test_unknown_parts_are_errors(capsys):
    with pytest.raises(SystemExit):
        gpu.main(["--parts", "wrong"])
    assert re.search("invalid choice: 'wrong' .*right.*fast.*train.*summary", capsys.readouterr().err)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_wanted_way_is_measured(device, tmp_path):
    titles = list(ways.tasks(torch.device(device), 0.0, tmp_path))
    assert titles[0].startswith("network s2fpn18 v1")
    for size in ("512x1024", "360x480", "1024x2048") if device == "cuda" else ("128x256", "90x120", "256x512"):
        for network in ("s2fpn18", "s2fpn34", "s2fpn34m", "s2fpn_lite"):
            for revision in ("v1", "v2"):
                for batch in (1, 8):
                    assert [t for t in titles if t.startswith(f"network {network} {revision} {size} batch {batch}: ")]
    everything = " ".join(titles)
    assert ("CUDA graph fp16" in everything) == ("fp16" in everything) == (device == "cuda")
    for way in (
        "plain tf32",
        "channels_last bf16",
        "max-autotune bf16",
        "reduce-overhead tf32",
        "onnxruntime CUDA tf32",
    ):
        assert way in everything


def test_ways_have_the_logits_of_the_network(monkeypatch, tmp_path):
    """A way that is not installed gives a row with the reason. Reports and the summary read the rows."""

    def once(calls, device, **_):
        return {way: Timing(((1.0 if way[0] == "published" else 0.5,),)) for way in calls}

    monkeypatch.setattr(ways, "time_in_turns", once)
    tried = (("plain", "float32"), ("channels_last", "tf32"), ("TensorRT", "tf32"))
    rows = list(ways.measure_ways("s2fpn_lite", "v2", (64, 96), 2, tried, CPU))
    failed = [row for file, row in rows if file == "failed.jsonl"]
    assert [(row["backend"], row["error"]) for row in failed] == [
        ("TensorRT", "ImportError: this onnxruntime has no TensorrtExecutionProvider")
    ]
    speed = [row for file, row in rows if file == "speed.jsonl"]
    assert [(row["backend"], row["ratio"], row["fps"]) for row in speed] == [
        ("published", 1, 2),
        ("plain", 2, 4),
        ("channels_last", 2, 4),
    ]
    assert max(row["max_difference"] for row in speed) < 1e-5
    gpu.append_row(tmp_path / "tasks.jsonl", ENVIRONMENT)
    for file, row in rows:
        gpu.append_row(tmp_path / file, row)
    gpu.write_page(tmp_path)
    text = (tmp_path / "summary.html").read_text()
    assert text.count("<svg") == 1
    assert "images per second at 64x96" in text
    assert set(with_remarks(collect_speed(tmp_path))["remark"]) == {""}


def test_an_exported_network_has_the_same_logits():
    network, x = torch.nn.Conv2d(3, 2, 3, padding=1), torch.randn(2, 3, 8, 12)
    network.mean = network.std = torch.zeros(3)
    with torch.no_grad():
        torch.testing.assert_close(ways.onnx_runner(network, x, "onnxruntime CPU", "tf32")(x), network(x))


def test_rows_of_the_training_step(monkeypatch):
    monkeypatch.setattr(ways, "time_in_turns", lambda calls, *_, **__: {way: Timing(((0.5,),)) for way in calls})
    steps = {"published": lambda: 0.0, "modern": lambda: 0.0}
    monkeypatch.setattr(ways, "make_step", lambda way, *_: steps[way])
    monkeypatch.setattr(ways.make_step, "cache_clear", lambda: None, raising=False)
    rows = list(ways.measure_steps("s2fpn_lite", (32, 64), 2, ("published", "other", "modern"), CPU))
    found = [(file, row["way"], row.get("images_per_s", row.get("error"))) for file, row in rows]
    assert found == [
        ("failed.jsonl", "other", "KeyError: 'other'"),
        ("training.jsonl", "published", 4),
        ("training.jsonl", "modern", 4),
    ]


def test_settled_activations_have_a_usual_scale():
    model = ways.settled(build_model("s2fpn_lite", revision="v2", num_classes=3, gamma_init=0.5), (96, 128))
    assert not model.training
    x = model.preprocess(torch.randint(0, 256, (2, 3, 96, 128), dtype=torch.uint8))
    with torch.no_grad():
        assert 0.01 < float(model(x).abs().max()) < 100


@pytest.fixture
def scenes(monkeypatch):
    pair = RoadScenes("train", size=(48, 64), count=4), RoadScenes("val", size=(48, 64), count=2)
    for module in (gpu, train):
        monkeypatch.setattr(module, "open_splits", lambda config: pair)
    monkeypatch.setattr(gpu, "SMALL", {**gpu.SMALL, "batch_size": 4})


def test_stages_follow_each_other_and_leave_their_results(tmp_path, monkeypatch, scenes):
    measure = gpu.fitted

    def one_epoch(config, seconds):
        longer, planned = measure(config, seconds)
        assert longer.epochs > 1
        return config.replace(epochs=1), planned

    monkeypatch.setattr(gpu, "fitted", one_epoch)
    monkeypatch.setattr(gpu, "MEASURED", 1)
    for stage in gpu.STAGES:
        ((file, row),) = gpu.train_stage(stage, CPU, time.monotonic() + 600, tmp_path)
        assert file == "train.jsonl"
        assert (row["preset"], row["stopped_by"], row["steps"]) == (stage, "epochs", 1)
        assert Evaluation.load(tmp_path / stage / "evaluation.json").row()["miou"] == pytest.approx(row["miou"])
        assert (tmp_path / stage / "predictions.png").exists()
        assert not list((tmp_path / stage).glob("*.pt"))
        averaged, last, chosen = (
            load_model(tmp_path / stage / f"{name}.safetensors").state_dict()
            for name in ("averaged-fp16", "last-fp16", "last")
        )
        for name, tensor in chosen.items():
            torch.testing.assert_close(averaged[name], tensor, atol=1e-3, rtol=1e-3)
        assert any(not torch.allclose(last[name], tensor, atol=1e-3) for name, tensor in chosen.items())
    first, second = (read_json(tmp_path / stage / "config.json") for stage in gpu.STAGES)
    assert first["init_from"] == ""
    assert second["init_from"] == str(tmp_path / "lite-camvid-gpu-own")


def test_epochs_follow_from_a_short_training(monkeypatch):
    """Epochs of 20 s (80 images, 4 per second) with 1 s of validation every 20 epochs, and 10 s to start."""
    history = [{"step": 5, "seconds": seconds, "images_per_s": speed} for seconds, speed in ((40, 2), (21, 4), (21, 4))]
    clock = iter((0.0, 73.0))
    monkeypatch.setattr(gpu.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(gpu, "train", lambda *_, **__: SimpleNamespace(history=history))
    config = TrainConfig.preset("lite-camvid-gpu-own", **gpu.SMALL, encoder_weights="")
    fitted, measured = gpu.fitted(config, 1000.0)
    assert measured == {"seconds_given": 1000, "epoch": 20, "start_up": 10, "validation": 1}
    assert (fitted.epochs, fitted.eval_every) == (int((0.9 * 917 - 2) / 20.05), 10)
    clock = iter((0.0, 73.0))
    with pytest.raises(ValueError, match=r"90 s are too few for an epoch of 20\.00 s, which needs 110 s"):
        gpu.fitted(config, 90.0)


def test_the_page_shows_what_failed(tmp_path):
    gpu.append_row(tmp_path / "tasks.jsonl", ENVIRONMENT)
    for file, row in (
        ("right", {"check": "logits", "network": "s2fpn18", "ok": True}),
        ("right", {"check": "step", "network": "s2fpn34", "ok": False}),
        ("failed", {"network": "s2fpn18", "backend": "TensorRT", "error": "not installed"}),
    ):
        gpu.append_row(tmp_path / f"{file}.jsonl", row)
    gpu.write_page(tmp_path)
    text = (tmp_path / "summary.html").read_text()
    assert "1 of 2 checks passed" in text
    assert "s2fpn34" in text
    assert "TensorRT" in text
