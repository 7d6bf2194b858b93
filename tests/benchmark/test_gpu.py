"""The command for a GPU, on a CPU: its budget, its files, and what happens when a task fails."""

import subprocess
import sys
import time
import zipfile
from functools import partial

import pytest
import torch

from s2fpn_lib import train
from s2fpn_lib.benchmark import checks, gpu, summary, timed_training, ways
from s2fpn_lib.benchmark.timing import Timing
from s2fpn_lib.data.roadscenes.dataset import RoadScenes
from s2fpn_lib.evaluate import Evaluation
from s2fpn_lib.model import build_model
from s2fpn_lib.report.collect import collect_speed
from s2fpn_lib.report.speed import with_remarks
from s2fpn_lib.runs import PROJECT, read_json, read_rows

CPU = torch.device("cpu")
ENVIRONMENT = {"part": "", "task": "environment", "status": "done"}
ENVIRONMENT |= {"gpus": ["H100"], "cpu": "Xeon", "torch": "2.11", "time": "2026-11-27T18:52:04+00:00"}


def first_rows(generator, count=1):
    return [row for _, (_, row) in zip(range(count), generator, strict=False)]


@pytest.mark.slow
def test_the_command_keeps_its_budget_and_leaves_its_results(tmp_path):
    """How many rows there are depends on the machine; those of "fast" are tested below."""
    command = [sys.executable, "-m", "s2fpn_lib.benchmark.gpu", "--device", "cpu", "--minutes", "0.9"]
    command += ["--parts", "right,fast,summary", "--out", str(tmp_path)]
    start = time.monotonic()
    subprocess.run(command, cwd=PROJECT, check=True, capture_output=True)
    assert time.monotonic() - start < 0.9 * 60 + 1
    rights = read_rows(tmp_path / "right.jsonl")
    assert rights[0]["difference"] == 0  # the same device
    assert all(row["ok"] for row in rights)
    log = read_rows(tmp_path / "tasks.jsonl")
    assert {row["part"] for row in log} == {"", "right", "fast"}
    assert not [row for row in log if row["status"] == "failed"]
    assert f"{len(rights)} of {len(rights)} checks passed" in (tmp_path / "summary.html").read_text()


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run(tasks, seconds): the rows of tasks.jsonl after these tasks."""

    def run_tasks(tasks, seconds=60.0):
        monkeypatch.setitem(gpu.PARTS, "fast", lambda device, end, out: tasks)
        gpu.run_part("fast", tmp_path, CPU, seconds)
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
    command = (
        "import time; time.sleep(1); from s2fpn_lib.benchmark.gpu import own_age; print(own_age(), time.process_time())"
    )
    command = [sys.executable, "-c", command]
    start = time.monotonic()
    output = subprocess.run(command, cwd=PROJECT, check=True, capture_output=True, text=True).stdout
    age, computed = map(float, output.split())
    assert 1 + computed / 2 < age < time.monotonic() - start + 0.1


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
    assert "unknown part 'wrong'; choose from right, fast, train, summary" in capsys.readouterr().err


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_wanted_way_is_measured(device, tmp_path):
    titles = list(ways.tasks(torch.device(device), 0.0, tmp_path))
    assert titles[0].startswith("s2fpn18 v1")
    for size in ("512x1024", "360x480", "1024x2048") if device == "cuda" else ("128x256", "90x120", "256x512"):
        for network in ("s2fpn18", "s2fpn34", "s2fpn34m", "s2fpn_lite"):
            for revision in ("v1", "v2"):
                for batch in (1, 8):
                    assert [t for t in titles if t.startswith(f"{network} {revision} {size} batch {batch}: ")]
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
    tried = (("plain", "float32"), ("channels_last", "tf32"), ("onnxruntime CPU", "tf32"), ("TensorRT", "tf32"))
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
        ("onnxruntime CPU", 2, 4),
    ]
    assert max(row["max_difference"] for row in speed) < 1e-5
    gpu.append_row(tmp_path / "tasks.jsonl", ENVIRONMENT)
    for file, row in rows:
        gpu.append_row(tmp_path / file, row)
    summary.write_page(tmp_path)
    text = (tmp_path / "summary.html").read_text()
    assert text.count("<svg") == 1
    assert "s2fpn_lite v2 at 64x96" in text
    assert set(with_remarks(collect_speed(tmp_path))["remark"]) == {""}


def test_a_graphed_step_gets_the_batch_and_the_precision(monkeypatch):
    seen = []

    def record(network, inputs, allow_unused_input):
        seen.append((tuple(inputs[0].shape), torch.is_autocast_cache_enabled()))
        return network

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", record)
    rows = list(ways.measure_steps("s2fpn_lite", (32, 64), 2, ("modern", "CUDA graphs"), CPU, repeats=1, seconds=0))
    assert [(file, row["way"]) for file, row in rows] == [
        ("training.jsonl", "modern"),
        ("training.jsonl", "CUDA graphs"),
    ]
    assert seen == [((2, 3, 32, 64), False)]


def test_settled_activations_have_a_usual_scale():
    model = ways.settled(build_model("s2fpn_lite", revision="v2", num_classes=3, gamma_init=0.5), (96, 128))
    assert not model.training
    assert all(norm.momentum < 0.5 for norm in model.modules() if isinstance(norm, torch.nn.BatchNorm2d))
    x = model.preprocess(torch.randint(0, 256, (2, 3, 96, 128), dtype=torch.uint8))
    with torch.no_grad():
        assert 0.01 < float(model(x).abs().max()) < 100


def test_a_step_that_waits_for_the_device_is_found(monkeypatch):
    assert first_rows(checks.no_host_sync("same loss", CPU))[0]["ok"]

    def wait(*_):
        raise RuntimeError("called a synchronizing CUDA operation")

    calls = iter([lambda *_: None, lambda *_: None, wait])
    monkeypatch.setattr(checks, "train_step", lambda *each: next(calls)(*each))
    (row,) = first_rows(checks.no_host_sync("same loss", CPU))
    assert (row["ok"], row["error"]) == (False, "called a synchronizing CUDA operation")


def test_a_resumed_run_that_differs_is_found(monkeypatch):
    (row,) = first_rows(checks.resume("modern", CPU))
    assert row["ok"]
    assert row["tensors"] > 1000

    monkeypatch.setattr(checks, "train_step", lambda state, *_: setattr(state, "step", state.step + 1))
    values = iter((1.0, 2.0))
    monkeypatch.setattr(checks, "tensors", lambda state: {"step": torch.tensor(next(values))})
    (row,) = first_rows(checks.resume("modern", CPU))
    assert (row["ok"], row["different"]) == (False, ["step"])


def test_a_step_may_be_as_far_from_float64_as_on_the_cpu(monkeypatch):
    """The CPU is off by 0.1 in float32; the device by 0.19, then by 0.35, and then by 0.01 in float64."""

    def results(of_device):
        values = iter((1.0, 1 + of_device[0], 1.1, 1 + of_device[1]))
        monkeypatch.setattr(checks, "first_step", lambda *_: (2.0, {"w": torch.tensor([next(values)]).double()}))
        return [row["ok"] for _, row in checks.steps("s2fpn18", "v1", CPU)]

    assert results((0.0, 0.19)) == [True, True]
    assert results((0.0, 0.35)) == [True, False]
    assert results((0.01, 0.1)) == [False, True]


def test_errors_of_a_step():
    wanted = 4.0, {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[4.0]])}
    found = 5.0, {"a": torch.tensor([3.0, 0.3]), "b": torch.tensor([[4.4]])}
    assert checks.step_error(found, wanted) == pytest.approx((0.25, 0.1))


def test_differences_are_relative_to_the_largest_logit():
    assert checks.relative(torch.tensor([1.0, 10.5]), torch.tensor([1.0, 10.0])) == (0.5, 0.05)
    assert checks.relative(torch.tensor([0.25]), torch.tensor([0.0])) == (0.25, 0.25)


@pytest.fixture
def scenes(monkeypatch):
    pair = RoadScenes("train", size=(48, 64), count=8), RoadScenes("val", size=(48, 64), count=2)
    for module in (timed_training, train):
        monkeypatch.setattr(module, "open_splits", lambda config: pair)
    monkeypatch.setattr(timed_training, "SMALL", {**timed_training.SMALL, "crop": (32, 48)})


def test_stages_follow_each_other_and_leave_their_results(tmp_path, monkeypatch, scenes):
    monkeypatch.setattr(timed_training, "fitted", lambda config, *_: (config.replace(epochs=1), {"start_up": 0.5}))
    for stage in timed_training.STAGES:
        ((file, row),) = timed_training.train_stage(stage, CPU, time.monotonic() + 600, tmp_path)
        assert file == "train.jsonl"
        assert (row["preset"], row["stopped_by"], row["steps"], row["start_up"]) == (stage, "epochs", 1, 0.5)
        assert Evaluation.load(tmp_path / stage / "evaluation.json").row()["miou"] == pytest.approx(row["miou"])
        assert (tmp_path / stage / "predictions.png").exists()
        assert not list((tmp_path / stage).glob("*.pt"))
    first, second = (read_json(tmp_path / stage / "config.json") for stage in timed_training.STAGES)
    assert first["init_from"] == ""
    assert second["init_from"] == str(tmp_path / "lite-camvid-gpu-own")


def test_epochs_follow_from_measured_steps(monkeypatch, scenes):
    """Nine tenths of 1000 s, in epochs of one step of 2 s, and hardly any validation."""
    monkeypatch.setattr(timed_training, "timed_steps", lambda *_: 2.0)
    config = timed_training.TrainConfig.preset("lite-camvid-gpu-own", **timed_training.SMALL, encoder_weights="")
    fitted, measured = timed_training.fitted(config, CPU, 1000.0)
    assert 430 <= fitted.epochs <= 450
    assert measured["seconds_per_step"] == 2.0
    with pytest.raises(ValueError, match="1 s are too few for an epoch of 1 steps, which needs about"):
        timed_training.fitted(config, CPU, 1.0)


def test_the_page_shows_what_failed(tmp_path):
    gpu.append_row(tmp_path / "tasks.jsonl", ENVIRONMENT)
    for file, row in (
        ("right", {"check": "logits", "network": "s2fpn18", "ok": True}),
        ("right", {"check": "step", "network": "s2fpn34", "ok": False}),
        ("failed", {"network": "s2fpn18", "backend": "TensorRT", "error": "not installed"}),
    ):
        gpu.append_row(tmp_path / f"{file}.jsonl", row)
    summary.write_page(tmp_path)
    text = (tmp_path / "summary.html").read_text()
    assert "1 of 2 checks passed" in text
    assert "s2fpn34" in text
    assert "TensorRT" in text
