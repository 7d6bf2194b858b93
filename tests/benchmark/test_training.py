"""The implementations compute the same: loss and gradients, counts, samples. No test asserts a time."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from s2fpn_lib.benchmark import training as benchmarks
from s2fpn_lib.benchmark.published import PublishedDataset, PublishedStep
from s2fpn_lib.benchmark.timing import Timing
from s2fpn_lib.benchmark.training import files_like, make_step, measure_loader, measure_training
from s2fpn_lib.data import open_dataset
from s2fpn_lib.data.camvid import CamVid
from s2fpn_lib.data.files import Cityscapes
from s2fpn_lib.data.roadscenes.dataset import RoadScenes
from s2fpn_lib.data.statistics import class_weights_from
from s2fpn_lib.losses import DeepSupervisionLoss
from s2fpn_lib.runs import RunDirectory
from s2fpn_lib.state import TrainingState
from s2fpn_lib.train import train_step

SIZE = (64, 96)


@pytest.fixture
def no_camvid(monkeypatch, tmp_path):
    monkeypatch.setenv("S2FPN_DATA", str(tmp_path))


@pytest.fixture
def small_files(no_camvid, monkeypatch):
    """Files of 48x64 pixels pass as files of both datasets."""
    monkeypatch.setattr("s2fpn_lib.benchmark.training.get_protocol", lambda name: type("Small", (), {"size": (48, 64)}))
    for reader in (CamVid, Cityscapes):
        monkeypatch.setattr(reader, "protocol", replace(reader.protocol, size=(48, 64)))


def training_of(step, tmp_path, **changes):
    scenes = RoadScenes("train", size=SIZE, count=4)
    config = benchmarks.step_config(step, "s2fpn_lite", 2, SIZE).replace(**changes)
    training = TrainingState(config, scenes, None, torch.device("cpu"), RunDirectory(tmp_path))
    training.model.train()
    return training


def test_the_published_step_has_the_same_loss_and_gradients(tmp_path):
    """In double precision, because batch norm over few pixels amplifies rounding; without dropout, whose mask depends
    on the memory format."""
    ours = training_of("same loss", tmp_path, switches={"dropout": 0.0})
    ours.model.double()
    images, labels = next(iter(ours.loader))
    weights = class_weights_from(RoadScenes("train", size=SIZE, count=4)).double()
    published = PublishedStep(ours.model, ours.config, weights, ignore_index=11, total=ours.total_steps)
    loss = published(ours.model.preprocess(images), labels.long())
    train_step(ours, images, labels)
    assert float(ours.loss_sum) == pytest.approx(loss, rel=1e-5)
    theirs = dict(published.model.named_parameters())
    largest = max(float(parameter.grad.abs().max()) for parameter in theirs.values())
    assert largest > 1e-3
    for name, parameter in ours.model.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-4, atol=1e-5 * largest)
    assert published.optimizer.param_groups[0]["lr"] == pytest.approx(ours.optimizer.param_groups[0]["lr"])


class HostSync(AssertionError):
    pass


class NoHostSync(TorchDispatchMode):
    """Raises HostSync for every operation whose result the host has to wait for."""

    WAITING = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "_unique2", "masked_select")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.__name__.split(".")[0] in self.WAITING:
            raise HostSync(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("step", ["same loss", "modern"])
def test_a_step_never_waits_for_the_device(step, tmp_path, monkeypatch):
    training = training_of(step, tmp_path, amp="off")
    images, labels = next(iter(training.loader))
    # only on a CPU, where reading a value costs nothing
    monkeypatch.setattr(training, "check_finite", lambda: None)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: True))
    with NoHostSync():
        train_step(training, images, labels)
        with pytest.raises(HostSync):
            training.loss_sum.item()


@pytest.mark.slow
def test_rows_of_the_training_step(run_once):
    rows = list(measure_training("s2fpn_lite", (32, 64), 2))
    assert [row["way"] for row in rows] == ["published", "plain pieces", "same loss", "modern"]
    assert rows[0]["ratio"] == 1
    for row in rows:
        assert row["images_per_s"] == 2
        assert row["data_ms"] >= 0


@pytest.mark.slow
def test_an_error_in_the_process_of_a_step_is_raised(run_once):
    with pytest.raises(ValueError, match="unknown"):
        list(measure_training("no_such_network", (32, 64), 2))


def test_the_plain_step_has_the_published_loss_and_needs_no_setting_of_malloc(tmp_path, monkeypatch):
    training = training_of("plain pieces", tmp_path, switches={"dropout": 0.0})
    images, labels = next(iter(training.loader))
    criterion = DeepSupervisionLoss(11, class_weights_from(RoadScenes("train", size=SIZE, count=4)))
    losses = []
    criterion.register_forward_hook(lambda module, inputs, loss: losses.append(loss.item()))
    x = training.model.preprocess(images)
    published = PublishedStep(training.model, training.config, criterion.class_weights, ignore_index=11, total=1000)
    expected = published(x, labels.long())
    benchmarks.plain_step(training.model, criterion, x, labels)()
    assert losses == [pytest.approx(expected, rel=1e-4)]
    monkeypatch.setattr(benchmarks, "keep_freed_memory", lambda: pytest.fail("a setting of malloc"))
    assert make_step("plain pieces", "s2fpn_lite", SIZE, 2, "cpu")() == 0


@pytest.mark.parametrize("kind", ["camvid", "cityscapes"])
def test_published_samples_are_crops_of_the_files(kind, tmp_path, small_files, monkeypatch):
    files = open_dataset(kind, files_like(kind, tmp_path / "made", 2), "train", cache=False)
    data = PublishedDataset(files, (40, 56))
    assert len(data) == 2
    image, label = data[0]
    assert (image.dtype, tuple(image.shape)) == (torch.float32, (3, 40, 56))
    assert (label.dtype, tuple(label.shape)) == (torch.int64, (40, 56))
    assert set(label.unique().tolist()) <= set(files.protocol.label_ids)
    monkeypatch.setattr("s2fpn_lib.benchmark.published.PUBLISHED_SCALES", (1.0,))
    whole, ids = PublishedDataset(files, (48, 64))[0]
    pixels, wanted = files.arrays(0)
    mean = torch.tensor(files.protocol.mean_published)[:, None, None]
    pixels = torch.from_numpy(pixels).permute(2, 0, 1).float() - mean
    flipped = torch.equal(ids, torch.from_numpy(wanted.astype(np.int64)).flip(-1))
    torch.testing.assert_close(whole.flip(-1) if flipped else whole, pixels)


@pytest.fixture
def run_once(monkeypatch):
    """Runs each call once instead of timing it."""

    def once(calls, device, **_):
        returned = {name: call() for name, call in calls.items()}
        return {name: Timing(((1.0,),), ((part,),)) for name, part in returned.items()}

    monkeypatch.setattr(benchmarks, "time_in_turns", once)


def test_rows_of_the_loader(small_files, run_once):
    rows = list(measure_loader("camvid", (32, 32), 2, images=3, workers=[0, 1]))
    assert [(row["way"], row["workers"]) for row in rows] == [("published", 0), ("workbench", 0), ("workbench", 1)]
    assert all(row["cache_correct"] and row["samples_per_s"] > 0 for row in rows)
