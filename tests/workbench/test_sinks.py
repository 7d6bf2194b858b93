"""TensorBoard and MLflow get the numbers of metrics.jsonl, once each, also after interruptions.

Live curves: what is displayed, when, and in which process.
"""

from __future__ import annotations

import io
import pickle
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from s2fpn_lib.model import build_model
from s2fpn_lib.runs import RunDirectory, RunLocked, append_row, read_json, read_rows
from s2fpn_lib.train import TrainConfig, train
from s2fpn_lib.workbench import sinks
from s2fpn_lib.workbench.sinks import LiveCurves, RunLogger

BOTH = "tensorboard, mlflow"
SMALL = {"dataset": "roadscenes", "train_split": "train:drive=park", "crop": [32, 48], "encoder_weights": ""}
SMALL |= {"epochs": 3, "eval_every": 2, "eval_images": 1, "batch_size": 40}

needs_both = pytest.mark.usefixtures("_local_store")  # skipped where one of the two is not installed


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory):
    """A store without runs; making one takes seconds."""
    pytest.importorskip("tensorboard")
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def _local_store(monkeypatch, tmp_path, empty_store, request):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    if {"logged", "results"} & set(request.fixturenames):
        shutil.copy(empty_store, tmp_path / "mlflow.db")


@pytest.fixture
def results(tmp_path):
    return tmp_path


@pytest.fixture
def config():
    return TrainConfig.preset("demo", **SMALL)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build_model("s2fpn_lite", num_classes=11).eval()


def event_file(run_dir):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"images": 0, "tensors": 0}).Reload()


def mlflow_run(run_dir, results):
    """The client, and the run that the folder names."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{results}/mlflow.db")
    (run_id,) = read_json(run_dir / "mlflow.json").values()
    return client, client.get_run(run_id)


def curves(run_dir, results):
    """{metric: {epoch: value}} of metrics.jsonl, TensorBoard, and MLflow; a repeated epoch is an error."""
    rows = read_rows(run_dir / "metrics.jsonl")
    names = [name for name in rows[0] if name != "epoch"]
    recorded = {n: {row["epoch"]: row[n] for row in rows if row[n] is not None} for n in names}
    recorded = {name: values for name, values in recorded.items() if values}
    events = event_file(run_dir)
    client, run = mlflow_run(run_dir, results)
    points = {
        "tensorboard": {n: [(e.step, e.value) for e in events.Scalars(n)] for n in events.Tags()["scalars"]},
        "mlflow": {
            n: [(e.step, e.value) for e in client.get_metric_history(run.info.run_id, n)] for n in run.data.metrics
        },
    }
    for found in points.values():
        assert all(len(dict(each)) == len(each) for each in found.values())
    return recorded, *({name: dict(each) for name, each in found.items()} for found in points.values())


def assert_equal_curves(run_dir, results):
    recorded, tensorboard, mlflow = curves(run_dir, results)
    assert mlflow == recorded
    # TensorBoard's scalars are float32
    assert tensorboard == {n: {e: float(np.float32(v)) for e, v in each.items()} for n, each in recorded.items()}


@pytest.mark.timeout(120)
@needs_both
def test_an_interrupted_training_continues_in_both(config, results, tmp_path):
    logger = RunLogger(BOTH, config, results=tmp_path)

    def until_two(row, model):
        logger(row, model)
        if row["epoch"] == 2:
            raise RuntimeError("power failure")

    with pytest.raises(RuntimeError, match="power"), logger:
        train(config, run_dir=logger.run_dir, on_epoch=until_two)
    first = mlflow_run(logger.run_dir, tmp_path)[1].info
    assert first.status == "FAILED"
    with RunLogger(BOTH, config, results=tmp_path) as logger:
        result = train(config, results=tmp_path, on_epoch=logger)
    assert result.run_dir.resolve() == logger.run_dir, "the logger expects the run where train puts it"
    assert_equal_curves(result.run_dir, tmp_path)
    assert [row["epoch"] for row in result.history] == [1, 2, 3]

    client, run = mlflow_run(result.run_dir, tmp_path)
    assert (run.info.run_id, run.info.status, run.info.run_name) == (first.run_id, "FINISHED", result.run_dir.name)
    assert run.data.params == {name: str(value) for name, value in result.config.to_dict().items()}
    artifacts = [each.path for each in client.list_artifacts(run.info.run_id, "predictions")]
    assert artifacts == ["predictions/epoch-0002.png", "predictions/epoch-0003.png"]
    picture = Image.open(client.download_artifacts(run.info.run_id, artifacts[-1], str(tmp_path)))
    events = event_file(result.run_dir)
    images = events.Images("predictions")
    assert [each.step for each in images] == [2, 3], "the validated epochs"
    assert Image.open(io.BytesIO(images[-1].encoded_image_string)).size == picture.size
    assert np.asarray(picture.convert("L")).std() > 30, "an empty picture"
    text = events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| epochs | 3 |" in text
    assert "| crop | [32, 48] |" in text


def row_of(epoch, loss, miou=None):
    return {"epoch": epoch, "step": 2 * epoch, "loss": loss, "val_miou": miou}


def record(run_dir, *rows):
    (run_dir / "metrics.jsonl").unlink(missing_ok=True)
    for row in rows:
        append_row(run_dir / "metrics.jsonl", row)


@pytest.fixture
def logged(config, network, tmp_path):
    """Calls a logger as a training does that has just written these rows."""
    run_dir = tmp_path / "run"

    def call(logger, *rows):
        record(run_dir, *rows)
        logger(rows[-1], network)

    call.new = lambda names=BOTH: RunLogger(names, config, run_dir, results=tmp_path, images=1)
    call.run_dir, call.results = run_dir, tmp_path
    return call


@needs_both
def test_an_epoch_that_was_not_logged_before_a_kill_follows(logged):
    logged(logged.new(), row_of(1, 0.5))
    # killed after the state and the row of epoch 2 were written
    logged(logged.new(), row_of(1, 0.5), row_of(2, 0.4), row_of(3, 0.1, miou=0.3))
    assert_equal_curves(logged.run_dir, logged.results)


@needs_both
def test_epochs_that_are_trained_again_are_not_doubled(logged):
    logger = logged.new()
    logged(logger, row_of(1, 0.5))
    logged(logger, row_of(1, 0.5), row_of(2, 0.4))
    # killed before the state of epoch 2 was written, as with checkpoint_every=3
    logged(logged.new(), row_of(1, 0.5), row_of(2, 0.25))
    recorded, tensorboard, mlflow = curves(logged.run_dir, logged.results)
    assert recorded["loss"] == tensorboard["loss"] == {1: 0.5, 2: 0.25}
    assert mlflow["loss"] == {1: 0.5, 2: 0.4}, "MLflow cannot remove a metric"


@needs_both
def test_another_process_gets_a_copy(logged):
    logger = logged.new()
    logged(logger, row_of(1, 0.5))
    logged(pickle.loads(pickle.dumps(logger)), row_of(1, 0.5), row_of(2, 0.4, miou=0.2))
    with logged.new():
        pass  # the first process ends the runs, and adds nothing
    assert_equal_curves(logged.run_dir, logged.results)
    assert mlflow_run(logged.run_dir, logged.results)[1].info.status == "FINISHED"


@needs_both
def test_a_finished_run_can_be_logged_afterwards(logged):
    record(logged.run_dir, row_of(1, 0.5), row_of(2, 0.4, miou=0.2))
    with logged.new():
        pass
    assert_equal_curves(logged.run_dir, logged.results)


@needs_both
def test_a_sink_that_fails_does_not_end_the_training_and_catches_up(logged, monkeypatch):
    logger = logged.new("tensorboard")
    log = sinks.TensorBoard.log
    monkeypatch.setattr(sinks.TensorBoard, "log", lambda *_: 1 / 0)
    with pytest.warns(UserWarning, match="tensorboard was not written and is tried again after the next epoch"):
        logged(logger, row_of(1, 0.5))
    monkeypatch.setattr(sinks.TensorBoard, "log", log)
    logged(logger, row_of(1, 0.5), row_of(2, 0.25))
    assert [(each.step, each.value) for each in event_file(logged.run_dir).Scalars("loss")] == [(1, 0.5), (2, 0.25)]


@needs_both
def test_a_run_of_another_process_is_left_alone(logged):
    record(logged.run_dir, row_of(1, 0.5))
    run = RunDirectory(logged.run_dir)
    with pytest.raises(RunLocked), run.lock(), logged.new(), run.lock():
        pass
    assert not (logged.run_dir / "mlflow.json").exists()
    assert not (logged.run_dir / "tensorboard").exists()


@needs_both
def test_the_tracking_server_of_the_environment(logged, monkeypatch, tmp_path):
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/elsewhere.db"
    (tmp_path / "mlflow.db").rename(tmp_path / "elsewhere.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "roads")
    logged(logged.new("mlflow"), row_of(1, 0.5))
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("roads").experiment_id])
    assert run.data.metrics["loss"] == 0.5
    assert not (tmp_path / "mlflow.db").exists()


@needs_both
def test_without_names_nothing_happens(config, tmp_path):
    with RunLogger("", config, results=tmp_path) as logger:
        logger(row_of(1, 0.5, miou=0.1), None)
    assert logger.run_dir is None
    assert list(tmp_path.iterdir()) == []


@needs_both
def test_errors_come_before_the_training(config, monkeypatch):
    with pytest.raises(ValueError, match=r"no sink 'tensorbord'\. Did you mean 'tensorboard'\?"):
        RunLogger("mlflow,tensorbord", config)
    for name in ("tensorboard", "mlflow"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ImportError, match=rf"'{name}' needs {name}: pip install 's2fpn-workbench\[logging\]'"):
            RunLogger(name, config)


class Shown:
    """In the place of a notebook's output: keeps the epochs of each figure that is displayed there."""

    def __init__(self):
        self.epochs = []

    def update(self, figure):
        self.epochs.append(list(figure.axes[0].lines[0].get_xdata()))


@pytest.fixture
def shown(monkeypatch):
    output = Shown()
    monkeypatch.setattr(sinks, "display", lambda *objects, display_id: output)
    monkeypatch.setattr(sinks, "get_ipython", object)
    return output


def write_epoch(run_dir, epoch):
    row = {"epoch": epoch, "loss": 1.0 / epoch, "val_miou": None, "lr": 1e-3, "data_s": 0.1}
    run_dir.mkdir(exist_ok=True)
    append_row(run_dir / "metrics.jsonl", row)
    return row


def test_every_epoch_is_drawn_and_the_other_functions_are_called(shown, tmp_path, monkeypatch):
    monkeypatch.setattr(sinks, "LARGEST_SHARE", float("inf"))
    called = []
    curves = LiveCurves(tmp_path / "run", lambda row, model: called.append((row["epoch"], model)))
    assert shown.epochs == []
    for epoch in (1, 2):
        curves(write_epoch(tmp_path / "run", epoch), "model")
    assert shown.epochs == [[1], [1, 2]]
    assert called == [(1, "model"), (2, "model")]


def test_an_interrupted_run_shows_its_first_epochs_at_once(shown, tmp_path):
    write_epoch(tmp_path / "run", 1)
    LiveCurves(tmp_path / "run")
    assert shown.epochs == [[1]]


def test_short_epochs_are_not_all_drawn_but_the_last_figure_is_complete(shown, tmp_path, monkeypatch):
    monkeypatch.setattr(sinks, "LARGEST_SHARE", 1e-6)
    curves = LiveCurves(tmp_path / "run")
    curves.due = 0.0
    for epoch in (1, 2, 3):
        curves(write_epoch(tmp_path / "run", epoch), None)
    assert shown.epochs == [[1]]
    assert list(curves.draw().axes[0].lines[0].get_xdata()) == [1, 2, 3]
    assert shown.epochs == [[1], [1, 2, 3]]


def test_other_processes_draw_nothing(tmp_path, monkeypatch, capsys):
    curves = pickle.loads(pickle.dumps(LiveCurves(tmp_path / "run")))
    capsys.readouterr()
    curves(write_epoch(tmp_path / "run", 1), None)
    assert capsys.readouterr().out == ""
