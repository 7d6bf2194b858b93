"""Training end to end on a few drawn scenes: exact resume, signals, errors, divergence, full disks, learning."""

import functools
import json
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from s2fpn_lib import checkpoint, runs
from s2fpn_lib import evaluate as evaluate_module
from s2fpn_lib import state as state_module
from s2fpn_lib import train as train_module
from s2fpn_lib.checkpoint import load_model, load_state, read_metadata
from s2fpn_lib.data import DatasetError, DatasetNotFound, SegmentationDataset, get_protocol
from s2fpn_lib.data.roadscenes.dataset import RoadScenes
from s2fpn_lib.data.statistics import class_weights_from
from s2fpn_lib.distributed.launch import StopRequested, StopSignals
from s2fpn_lib.model import build_model
from s2fpn_lib.optim import warmup_poly
from s2fpn_lib.replay import ReplayMismatch
from s2fpn_lib.runs import ConfigChanged, RunDirectory, RunLocked, WriteError, read_rows
from s2fpn_lib.state import TrainingDiverged, TrainingState, default_run_dir, step_seed
from s2fpn_lib.train import TrainConfig, cudnn_search, train, train_step

SIZE = (64, 96)
CLASSES, PALETTE = get_protocol("roadscenes").classes, get_protocol("roadscenes").palette
COUNTS = {"train": 10, "val": 2, "trainval": 12}


@functools.cache
def drawn(split: str) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    scenes = RoadScenes(split, size=SIZE, count=COUNTS[split])
    return tuple(scenes.arrays(index) for index in range(len(scenes)))


class Scenes(RoadScenes):
    """Ten small scenes, held in memory; validation at their own size."""

    def __init__(self, split: str):
        super().__init__(split, size=SIZE, count=COUNTS[split])
        self.pairs = list(drawn(split))

    def arrays(self, index):
        return self.pairs[index]

    fingerprint = SegmentationDataset.fingerprint  # by their pixels, which tests change


def few_scenes(name, root=None, split="train"):
    if name == "camvid":
        raise DatasetNotFound("no CamVid in this test")
    return Scenes(split)


def tiny(**changes) -> TrainConfig:
    """Five steps per epoch of the real network on small crops, with everything on that has state."""
    return TrainConfig.preset(
        "quick",
        **{
            "crop": (32, 48),
            "batch_size": 2,
            "epochs": 3,
            "warmup": 4,
            "amp": "off",
            "device": "cpu",
            "eval_images": 1,
            "eval_every": 1,
            "encoder_weights": "",
            "encoder_lr": 0.0,
            "dataset": "roadscenes",
            **changes,
        },
    )


def interruptible() -> TrainConfig:
    return tiny(checkpoint_minutes=1e-6)  # a state after every step, so that kills fall inside epochs, too


def few_scenes_and_one_commit():
    """Patches: few scenes, and one code version, as a commit between two compared runs would show in their metadata."""
    version = {"git_sha": "0" * 40, "dirty": False}
    return mock.patch.multiple(state_module, open_dataset=few_scenes), mock.patch.object(
        runs, "code_version", return_value=version
    )


@pytest.fixture(scope="module", autouse=True)
def _patched():
    scenes, commit = few_scenes_and_one_commit()
    with scenes, commit:
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory, _patched):
    """One uninterrupted run of `interruptible`."""
    return train(interruptible(), run_dir=tmp_path_factory.mktemp("runs") / "whole")


def test_a_run_records_what_it_did(finished):
    run = RunDirectory(finished.run_dir)
    names = {"best.safetensors", "config.json", "environment.json", "last.pt", "last.safetensors", "lock"}
    assert {path.name for path in run.path.iterdir()} == names | {"metrics.jsonl", "previous.pt", "result.json"}
    data = json.loads(run.config.read_text()).pop("data")
    assert data == {"train": Scenes("train").digest(), "val": Scenes("val").digest()} == finished.summary["data"]
    assert TrainConfig.from_dict(json.loads(run.config.read_text())).recipe() == finished.config.recipe()
    assert [row["epoch"] for row in finished.history] == [1, 2, 3]
    assert [row["step"] for row in finished.history] == [5, 10, 15]
    for row in finished.history:
        assert row["loss"] > 0
        assert 0 <= row["val_miou"] <= 1
        assert row["seconds"] > 0
        assert row["images_per_s"] == pytest.approx(2 / (row["data_s"] + row["step_s"]), rel=1e-6)
    assert finished.summary["val_miou"] == max(row["val_miou"] for row in finished.history)
    assert finished.summary["checkpoint"] == "best.safetensors"
    assert finished.summary["stopped_by"] == "epochs"
    assert json.loads(run.result.read_text()) == finished.summary
    best = read_metadata(run.best)
    assert (best["val_miou"], best["protocol"], best["seed"]) == (finished.summary["val_miou"], "roadscenes", 0)
    assert not finished.model.training
    assert json.loads(run.environment.read_text())["device"] == "cpu"


def test_a_finished_run_is_returned_unchanged(finished):
    before = {path: path.read_bytes() for path in finished.run_dir.iterdir() if path.name != "lock"}
    again = train(interruptible().replace(workers=1), run_dir=finished.run_dir)
    assert again.history == finished.history
    assert again.summary == finished.summary
    assert {path: path.read_bytes() for path in before} == before


class Interrupt(Exception):
    pass


def interrupt_after(step):
    """Interrupts the training after `step` steps, as Ctrl-C would."""

    def interrupted(state, images, labels):
        if state.step == step:
            raise Interrupt
        train_step(state, images, labels)

    return mock.patch.object(train_module, "train_step", interrupted)


def test_a_run_interrupted_between_states_ends_with_the_same_bytes(finished, tmp_path):
    config = interruptible().replace(checkpoint_minutes=0.0)
    for step in (3, 8):  # before the first state, and after it
        with interrupt_after(step), pytest.raises(Interrupt):
            train(config, run_dir=tmp_path)
    torch.rand(7)  # what else the process draws does not matter
    train(config, run_dir=tmp_path, on_epoch=lambda row, model: torch.rand(3))
    assert (tmp_path / "last.safetensors").read_bytes() == (finished.run_dir / "last.safetensors").read_bytes()
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 3


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory, _patched):
    """The folder of a run that was interrupted in its third epoch."""
    folder = tmp_path_factory.mktemp("runs") / "interrupted"
    with interrupt_after(13), pytest.raises(Interrupt):
        train(tiny(checkpoint_minutes=0.0), run_dir=folder)
    return folder


def test_a_damaged_state_costs_steps_but_not_the_result(finished, interrupted, tmp_path):
    shutil.copytree(interrupted, tmp_path, dirs_exist_ok=True)
    state = tmp_path / "last.pt"
    damaged = state.read_bytes()[:5000]
    state.write_bytes(damaged)
    with pytest.warns(
        UserWarning, match=r"continuing from .*previous\.pt at step 5: at least 5 steps are repeated"
    ) as told:
        train(tiny(checkpoint_minutes=0.0), run_dir=tmp_path)
    assert len(told) == 1
    assert (tmp_path / "last.safetensors").read_bytes() == (finished.run_dir / "last.safetensors").read_bytes()
    assert (tmp_path / "damaged.pt").read_bytes() == damaged


def test_a_state_of_another_run_is_not_taken_over(finished, interrupted, tmp_path):
    shutil.copytree(interrupted, tmp_path / "run")
    train(tiny(seed=1, epochs=1), run_dir=tmp_path / "other")
    shutil.copy(tmp_path / "other" / "last.pt", tmp_path / "run" / "last.pt")
    with pytest.warns(
        UserWarning, match=r"belongs to a run with another configuration .* at step 5: 0 steps are repeated"
    ):
        train(tiny(checkpoint_minutes=0.0), run_dir=tmp_path / "run")
    ours, theirs = (folder / "last.safetensors" for folder in (tmp_path / "run", finished.run_dir))
    assert ours.read_bytes() == theirs.read_bytes()


class Terminated(Exception):
    pass


@pytest.fixture
def terminated():
    """SIGTERM and SIGHUP raise an exception, as the handlers of a program may."""

    def handler(number, _):
        raise Terminated(signal.Signals(number).name)

    before = {each: signal.signal(each, handler) for each in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


def signals_in_step(step, *signals):
    """Sends signals to this process in the middle of a step."""
    original = train_module.compute_gradients

    def interrupted(state, images, labels):
        loss = original(state, images, labels)
        for each in signals if state.step == step else ():
            signal.raise_signal(each)
        return loss

    return mock.patch.object(train_module, "compute_gradients", interrupted)


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated), (signal.SIGHUP, Terminated)]
)
def test_a_signal_ends_the_run_after_its_step(finished, tmp_path, terminated, capsys, number, error):
    config = interruptible().replace(checkpoint_minutes=0.0)
    for step in (2, 4):  # inside an epoch, and at its end
        with signals_in_step(step, number), pytest.raises(error):
            train(config, run_dir=tmp_path)
        state = load_state(tmp_path / "last.pt")
        assert state["step"] == step + 1
        said = capsys.readouterr().out
        assert f"stopped by {number.name} after step {step + 1} of 15: {tmp_path / 'last.pt'} holds the state" in said
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    train(config, run_dir=tmp_path)
    for name in ("last.safetensors", "best.safetensors"):
        assert (tmp_path / name).read_bytes() == (finished.run_dir / name).read_bytes()
    rows = [
        [row[key] for key in ("epoch", "step", "loss", "val_miou")] for row in read_rows(tmp_path / "metrics.jsonl")
    ]
    assert rows == [[row[key] for key in ("epoch", "step", "loss", "val_miou")] for row in finished.history]


def test_a_signal_during_validation_does_not_cost_the_epoch(finished, tmp_path):
    config = interruptible().replace(checkpoint_minutes=0.0)
    original, images = evaluate_module.predict_logits, []

    def interrupted(*args, **kwargs):
        images.append(1)
        if len(images) == 2:  # of the second epoch: each validates one image
            signal.raise_signal(signal.SIGINT)
        return original(*args, **kwargs)

    with mock.patch.object(evaluate_module, "predict_logits", interrupted), pytest.raises(KeyboardInterrupt):
        train(config, run_dir=tmp_path)
    assert load_state(tmp_path / "last.pt")["step"] == 10
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 1
    result = train(config, run_dir=tmp_path)
    assert json.loads((tmp_path / "environment.json").read_text())["resumed_at_step"] == 10
    assert [row["val_miou"] for row in result.history] == [row["val_miou"] for row in finished.history]
    for name in ("last.safetensors", "best.safetensors"):
        assert (tmp_path / name).read_bytes() == (finished.run_dir / name).read_bytes()


def test_a_second_interrupt_does_not_wait_and_an_ignored_signal_stays_ignored(tmp_path, terminated):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    hang_up, interrupt = signals_in_step(3, signal.SIGHUP), signals_in_step(7, signal.SIGINT, signal.SIGINT)
    with hang_up, interrupt, pytest.raises(KeyboardInterrupt):
        train(tiny(checkpoint_minutes=0.0), run_dir=tmp_path)
    assert load_state(tmp_path / "last.pt")["step"] == 5  # of the epoch: the eighth step is not finished
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_an_error_is_shown_although_a_signal_ends_the_process(terminated, capsys):
    def failing():
        with StopSignals() as stop:
            signal.raise_signal(signal.SIGTERM)
            assert stop.received == signal.SIGTERM
            raise OSError("no room for the state")

    with pytest.raises(Terminated):
        failing()
    assert "OSError: no room for the state" in capsys.readouterr().err


def test_only_the_first_signal_ends_validation(terminated):
    def stopped_twice():
        with StopSignals() as stop:
            with pytest.raises(StopRequested), stop.at_once():
                signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGHUP)  # while the state is saved

    with pytest.raises(Terminated, match="SIGTERM"):
        stopped_twice()


def test_outside_the_main_thread_nothing_is_held_back(tmp_path):
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(train, tiny(epochs=1), run_dir=tmp_path).result().summary["steps"] == 5


@pytest.mark.parametrize("damaged", ["train", "val"])
def test_a_broken_file_of_either_split_stops_the_run_before_it_starts(tmp_path, damaged):
    def broken(name, root=None, split="train"):
        scenes = few_scenes(name, root, split)
        if split == damaged:
            image, label = scenes.pairs[1]
            scenes.pairs[1] = image, label.clip(40)
        return scenes

    with (
        mock.patch.object(state_module, "open_dataset", broken),
        pytest.raises(DatasetError, match=rf"(?s)roadscenes {damaged} has 1 error.*: label holds 40"),
    ):
        train(tiny(), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_random_numbers_of_the_caller_are_unchanged(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    train(tiny(epochs=1), run_dir=tmp_path)
    assert torch.equal(torch.rand(4), expected)


def test_another_recipe_in_the_same_directory_is_refused(finished):
    with pytest.raises(ConfigChanged, match=r"lr 0\.002 -> 0\.001"):
        train(interruptible().replace(lr=1e-3), run_dir=finished.run_dir)


def test_two_processes_cannot_train_in_one_directory(tmp_path):
    with RunDirectory(tmp_path).lock(), pytest.raises(RunLocked):
        train(tiny(), run_dir=tmp_path)


def test_the_default_directory_is_named_by_the_recipe_and_the_data(tmp_path):
    data = {"train": "0" * 12, "val": "1" * 12}
    other = {**data, "train": "2" * 12}
    folder = default_run_dir(tiny(), "roadscenes", data, tmp_path)
    assert folder == default_run_dir(tiny(workers=3, data_root="/elsewhere"), "roadscenes", data, tmp_path)
    assert folder != default_run_dir(tiny(seed=1), "roadscenes", data, tmp_path)
    assert folder != default_run_dir(tiny(), "roadscenes", other, tmp_path)
    assert folder.name.startswith("roadscenes-s2fpn_lite-v1-")
    recipe = tiny().recipe()
    earlier = RunDirectory(tmp_path / "train" / f"roadscenes-s2fpn_lite-v1-{runs.config_hash(recipe)}")
    earlier.claim(recipe, {})  # a version that did not record the data
    assert default_run_dir(tiny(), "roadscenes", data, tmp_path) == earlier.path
    earlier.claim(recipe, {}, data)
    assert default_run_dir(tiny(), "roadscenes", data, tmp_path) == earlier.path
    assert default_run_dir(tiny(), "roadscenes", other, tmp_path) != earlier.path


def test_a_nan_loss_stops_with_step_and_samples_named_and_keeps_the_last_good_state(tmp_path):
    def poisoned(state, images, labels):
        if state.step == 7:
            with torch.no_grad():
                state.model.head.weight.fill_(float("nan"))
        train_step(state, images, labels)

    with mock.patch.object(train_module, "train_step", poisoned), pytest.raises(TrainingDiverged) as caught:
        train(tiny(), run_dir=tmp_path)
    message = str(caught.value)
    assert "step 7 (epoch 2, batch 3 of 5): the loss is not finite" in message
    state = load_state(tmp_path / "last.pt")
    assert state["step"] == 5
    assert all(value.isfinite().all() for value in state["model"].values())
    expected = few_scenes("roadscenes").names
    assert sum(name in message for name in expected) == 2  # the batch's two samples


def test_a_step_with_two_results_stops_and_the_run_goes_on_from_the_last_state(finished, tmp_path):
    original, calls = train_module.compute_gradients, []

    def faulty(state, images, labels):
        loss = original(state, images, labels)
        calls.append(state.step)
        if state.step == 8 and calls.count(8) == 2:
            state.model.head.weight.grad.view(-1)[3] += 1e-3
        return loss

    config = tiny(checkpoint_minutes=0.0, replay_check=2)
    expected = r"step 8 \(epoch 2, batch 4 of 5\).* first the gradient of head\.weight"
    wrong = mock.patch.object(train_module, "compute_gradients", faulty)
    with wrong, pytest.raises(ReplayMismatch, match=expected):
        train(config, run_dir=tmp_path)
    assert calls == [0, 0, 1, 2, 2, 3, 4, 4, 5, 6, 6, 7, 8, 8]
    assert load_state(tmp_path / "last.pt")["step"] == 5
    train(config, run_dir=tmp_path)
    assert (tmp_path / "last.safetensors").read_bytes() == (finished.run_dir / "last.safetensors").read_bytes()


def test_weights_that_overflow_without_a_nan_loss_are_never_saved(tmp_path):
    original = TrainingState.save

    def overflowed(self):
        with torch.no_grad():
            self.model.head.weight.fill_(float("inf"))
        original(self)

    with (
        mock.patch.object(TrainingState, "save", overflowed),
        pytest.raises(TrainingDiverged, match="weights are not finite"),
    ):
        train(tiny(), run_dir=tmp_path)
    assert load_state(tmp_path / "last.pt") is None


def test_batch_names_are_those_of_the_batch(tmp_path):
    scenes = Scenes("train")
    config = tiny(scales=(1.0,), scale_range=None, flip=False, photometric=0.0, crop=SIZE)
    training = TrainingState(config, scenes, None, torch.device("cpu"), RunDirectory(tmp_path))
    steps = len(training.loader)
    for step in range(2 * steps):
        if step % steps == 0:
            batches = iter(training.loader)
        images, _ = next(batches)
        for image, name in zip(images, training.loader.batch_names(*divmod(step, steps)), strict=True):
            assert torch.equal(image, scenes[scenes.names.index(name)][0])


def test_a_full_disk_stops_with_a_clear_error_and_the_run_goes_on_later(finished, tmp_path):
    original, calls = checkpoint.torch.save, []

    def full_disk(state, file):
        calls.append(state["step"])
        if len(calls) == 2:
            file.write(b"half")
            raise OSError(28, "No space left on device")
        original(state, file)

    config = tiny(checkpoint_minutes=0.0)
    with mock.patch.object(checkpoint.torch, "save", full_disk):
        with pytest.raises(WriteError, match=r"could not write .*last\.pt .*No space left.*intact"):
            train(config, run_dir=tmp_path)
        assert load_state(tmp_path / "last.pt")["step"] == 5
        train(config, run_dir=tmp_path)
    assert (tmp_path / "last.safetensors").read_bytes() == (finished.run_dir / "last.safetensors").read_bytes()


def test_the_time_budget_stops_at_an_epochs_end_and_may_grow(finished, tmp_path):
    short = train(tiny(max_minutes=1e-6, checkpoint_minutes=0.0), run_dir=tmp_path)
    assert (short.summary["stopped_by"], short.summary["epochs"]) == ("max_minutes", 1)
    assert len(train(tiny(max_minutes=1e-6), run_dir=tmp_path).history) == 1
    whole = train(tiny(max_minutes=0.0, checkpoint_minutes=0.0), run_dir=tmp_path)
    assert (whole.summary["stopped_by"], whole.summary["epochs"]) == ("epochs", 3)
    assert (tmp_path / "last.safetensors").read_bytes() == (finished.run_dir / "last.safetensors").read_bytes()


def test_a_run_that_time_ends_has_the_weights_that_its_rule_names(tmp_path):
    seen = []

    def on_epoch(row, model):
        seen.append((row["val_miou"], model))

    config = tiny(max_minutes=1e-6, eval_every=2, epochs=2)
    short = train(config, run_dir=tmp_path, on_epoch=on_epoch)
    assert (short.summary["stopped_by"], short.summary["epochs"]) == ("max_minutes", 1)
    assert short.checkpoint == tmp_path / "best.safetensors"
    assert short.summary["val_miou"] == short.history[0]["val_miou"] == seen[0][0] is not None
    weights = load_model(tmp_path).state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in seen[0][1].state_dict().items())  # the averaged
    (tmp_path / "best.safetensors").unlink()  # as an earlier version left it
    with pytest.warns(UserWarning, match="the last weights of the run are used"):
        assert train(config, run_dir=tmp_path).checkpoint == tmp_path / "last.safetensors"


def test_a_run_interrupted_before_its_first_validation_is_validated_when_no_time_is_left(tmp_path):
    config = tiny(eval_every=2, epochs=2, checkpoint_minutes=0.0)
    with interrupt_after(7), pytest.raises(Interrupt):
        train(config, run_dir=tmp_path)
    stopped = train(config.replace(max_minutes=1e-6), run_dir=tmp_path)
    assert (stopped.summary["stopped_by"], stopped.summary["epochs"]) == ("max_minutes", 1)
    assert stopped.summary["val_miou"] == read_metadata(tmp_path / "best.safetensors")["val_miou"]


def test_other_data_never_continue_or_return_a_run(tmp_path):
    def repaired(name, root=None, split="train"):
        scenes = few_scenes(name, root, split)
        if split == changed:
            image, label = scenes.pairs[1]
            scenes.pairs[1] = 255 - image, label
        return scenes

    config = tiny(epochs=1)
    first = train(config, results=tmp_path)
    assert train(config, results=tmp_path).run_dir == first.run_dir
    for changed in ("train", "val"):
        with mock.patch.object(state_module, "open_dataset", repaired):
            with pytest.raises(ConfigChanged, match=f"other data .*{changed} {first.summary['data'][changed]} -> "):
                train(config, run_dir=first.run_dir)
            if changed == "val":
                other = train(config, results=tmp_path)
                assert other.run_dir != first.run_dir
                assert other.summary["data"]["train"] == first.summary["data"]["train"]


def test_fine_tuning_takes_over_the_network_and_says_what_is_new(finished, tmp_path, capsys):
    def shop(name, root=None, split="train"):
        scenes = few_scenes(name, root, split)
        classes, palette = ((*values, new) for values, new in ((CLASSES, "new"), (PALETTE, (1, 2, 3))))
        kind = {"name": "shop-64x96-abcd", "dataset": "shop", "ignore_id": 12}
        scenes.protocol = replace(scenes.protocol, classes=classes, palette=palette, **kind)
        scenes.name = "shop"
        scenes.pairs = [(image, np.where(label == 11, 12, label)) for image, label in scenes.pairs]
        return scenes

    changes = {"epochs": 1, "crop": (32, 48), "batch_size": 5, "device": "cpu", "amp": "off", "eval_images": 1}
    rates = {"lr": 1e-9, "encoder_lr": 1e-9}
    config = TrainConfig.preset("quick", dataset="shop", init_from=str(finished.run_dir), **changes, **rates)
    with mock.patch.object(state_module, "open_dataset", shop):
        result = train(config, run_dir=tmp_path)
    assert "which are initialized anew: auxiliary.0.2" in capsys.readouterr().out
    metadata = read_metadata(result.checkpoint)
    assert metadata["pretraining"].startswith("none, then roadscenes train; initialized anew: auxiliary.0.2")
    images = result.summary["training"][1]["images"]  # of the user's own dataset, whose splits may change
    assert len(images) == 10
    history = [{"dataset": "roadscenes", "split": "train"}]
    history += [{"dataset": "shop", "split": "train", "images": images}]
    assert metadata["training"] == result.summary["training"] == history
    assert (metadata["dataset"], metadata["data"]) == ("shop", result.summary["data"]["train"])
    old, new = (dict(each.named_parameters()) for each in (finished.model, result.model))
    alike = {name for name in new if old[name].shape == new[name].shape}
    kept = {name for name in alike if torch.allclose(old[name], new[name], atol=1e-6)}
    assert {name.rsplit(".", 1)[0] for name in new.keys() - kept} == {"head", *(f"auxiliary.{i}.2" for i in range(4))}


def test_a_run_continues_where_the_weights_that_it_started_from_are_gone(finished, tmp_path):
    shutil.copytree(finished.run_dir, tmp_path / "start")
    config = tiny(init_from=str(tmp_path / "start"), epochs=2, checkpoint_minutes=0.0)
    with interrupt_after(7), pytest.raises(Interrupt):
        train(config, run_dir=tmp_path / "run")
    shutil.rmtree(tmp_path / "start")
    stored = TrainConfig.from_dict(json.loads((tmp_path / "run" / "config.json").read_text())).replace(device="cpu")
    result = train(stored, run_dir=tmp_path / "run")
    assert result.summary["pretraining"] == "none, then roadscenes train"
    assert len(result.summary["training"]) == 2


def test_the_rule_last_returns_the_last_weights(tmp_path):
    result = train(tiny(epochs=1, val_split="", checkpoint_rule="last", ema=0.0), run_dir=tmp_path)
    assert (result.summary["checkpoint"], result.summary["val_miou"]) == ("last.safetensors", None)
    assert not (tmp_path / "best.safetensors").exists()
    state = load_state(tmp_path / "last.pt")["model"]
    assert all(torch.equal(value, state[name]) for name, value in load_model(tmp_path).state_dict().items())


def test_a_checkpoint_is_not_chosen_by_training_images(tmp_path):
    overlapping = tiny(train_split="train:drive=x")  # these scenes ignore the filter
    with (
        mock.patch.object(state_module, "open_dataset", return_value=Scenes("train")),
        pytest.raises(ValueError, match=r"10 of the 10 images of val_split='val' are also in"),
    ):
        train(overlapping, run_dir=tmp_path)


def test_step_seeds_differ_between_steps_and_seeds():
    seeds = {step_seed(seed, step) for seed in range(20) for step in range(500)}
    assert len(seeds) == 20 * 500
    assert all(0 <= seed < 2**32 for seed in seeds)


def flat_parameters(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_a_step_is_the_plain_recipe(tmp_path):
    """Two steps of the loop equal the same arithmetic in plain torch."""
    changes = {
        "optimizer": "sgd",
        "lr": 0.05,
        "ema": 0.0,
        "clip": 0.5,
        "aux_resolution": "label",
        "class_weights": 1.1,
        "aux_weight": 1.0,
    }
    config = tiny(decay_all=True, crop=SIZE, batch_size=4, epochs=8, **changes)
    scenes = Scenes("train")
    training = TrainingState(config, scenes, None, torch.device("cpu"), RunDirectory(tmp_path))
    training.model.train()

    torch.manual_seed(config.seed)
    model = build_model("s2fpn_lite", num_classes=11).to(memory_format=torch.channels_last).train()
    initial = flat_parameters(model)
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9, weight_decay=config.weight_decay)
    weights = class_weights_from(scenes)

    for step, (images, labels) in enumerate(training.loader):
        train_step(training, images, labels)

        torch.manual_seed(step_seed(config.seed, step))
        logits, auxiliary = model((images.float() - model.mean) / model.std, aux=True)  # all at the label's size
        loss = sum(F.cross_entropy(each, labels.long(), weights, ignore_index=11) for each in (logits, *auxiliary))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        # 16 steps, 2 per epoch: the warm-up is one step
        optimizer.param_groups[0]["lr"] = 0.05 * warmup_poly(step, total=16, warmup=1)
        optimizer.step()
    weights_now, expected = (flat_parameters(each) for each in (training.model, model))
    moved = (expected - initial).norm()
    assert (weights_now - expected).norm() < 1e-3 * moved  # rounding, which small batches in BatchNorm amplify


def test_it_learns(tmp_path):
    """Eight epochs on ten scenes: the loss falls, in bf16 where the processor has it."""
    result = train(
        tiny(epochs=8, amp="auto", eval_every=5, checkpoint_every=8, scales=(1.0,), scale_range=None), run_dir=tmp_path
    )
    losses = [row["loss"] for row in result.history]
    assert losses[-1] < 0.85 * losses[0]
    validated = [row["epoch"] for row in result.history if row["val_miou"] is not None]
    assert validated == [5, 8]


def test_cudnn_searches_where_it_pays_off():
    """Not in deterministic mode, on a CPU, or with depthwise convolutions."""

    def searches(model, device):
        with cudnn_search(model, torch.device(device)):
            return torch.backends.cudnn.benchmark

    cases = [("s2fpn18", "cuda"), ("s2fpn18", "cpu"), ("s2fpn_lite2", "cuda")]
    assert [searches(*case) for case in cases] == [True, False, False]
    torch.use_deterministic_algorithms(True)
    try:
        assert not searches("s2fpn18", "cuda")
    finally:
        torch.use_deterministic_algorithms(False)
