"""Training step, loader and metric, each in turns with the published code's way. One row a way, ratios within a call.

A row holds its protocol and: p50_ms, p90_ms, spread, repeats, calls, ratio to the published way with the repeats'
ratio_low and ratio_high.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from s2fpn_lib.benchmark.data import files_like
from s2fpn_lib.benchmark.inference import session
from s2fpn_lib.benchmark.own_process import OwnProcess
from s2fpn_lib.benchmark.published import PublishedDataset, PublishedStep, pixel_loop_matrix
from s2fpn_lib.benchmark.timing import Timing, ratio_row, time_calls, time_in_turns
from s2fpn_lib.config import TrainConfig
from s2fpn_lib.data import NO_AUGMENT, open_dataset, train_loader
from s2fpn_lib.data.cache import cached
from s2fpn_lib.data.roadscenes.dataset import RoadScenes
from s2fpn_lib.data.statistics import class_weights_from
from s2fpn_lib.distributed import keep_freed_memory
from s2fpn_lib.metrics import ConfusionMatrix
from s2fpn_lib.runs import RunDirectory
from s2fpn_lib.train import Training

CPU = torch.device("cpu")
STEP_WAYS = ("published", "same loss", "modern")
SCENES = 32  # that the training steps draw from


def measure_training(
    name: str, size: tuple[int, int], batch: int, *, device: str = "cpu", **stopwatch: Any
) -> Iterator[dict[str, Any]]:
    """Rows of one optimizer step of network `name` on crops of `size` (height, width).

    Ways: "published" (`PublishedStep`, on a batch that lies ready), "same loss" (the workbench's step with the same
    loss and gradients, its loader beside it) and "modern" (the preset's step). Each has a process of its own, with
    malloc as the published code and as `train` leave it. data_ms: how long the step waited for its batch (median).
    """
    with ExitStack() as stack:
        options = {"name": name, "size": size, "batch": batch, "device": device}
        steps = {way: stack.enter_context(OwnProcess(make_step, way=way, **options)) for way in STEP_WAYS}
        waits: dict[str, list[float]] = {way: [] for way in STEP_WAYS}
        calls = {way: lambda way=way: waits[way].append(steps[way]()) for way in STEP_WAYS}
        timings = time_in_turns(calls, CPU, **stopwatch)
    for way, timing in timings.items():
        yield {
            "network": name,
            "height": size[0],
            "width": size[1],
            "batch": batch,
            "way": way,
            **timing.row(),
            "images_per_s": round(batch / timing.p50, 3),
            **ratio_row(timings["published"], timing),
            "data_ms": round(1e3 * float(np.median(waits[way][-sum(map(len, timing.repeats)) :])), 3),
            **session(torch.device(device)),
        }


def make_step(way: str, name: str, size: tuple[int, int], batch: int, device: str) -> Callable[[], float]:
    """A function that trains one step and returns the seconds that it waited for data; for `OwnProcess`."""
    config = step_config(way, name, batch, size)
    target = torch.device(device)
    folder = tempfile.TemporaryDirectory()
    scenes = cached(RoadScenes("train", size=size, count=max(SCENES, batch)), Path(folder.name) / "cache")
    training = Training(config, scenes, None, target, RunDirectory(folder.name))
    training.model.train()
    if way == "published":
        images, labels = next(iter(training.loader))
        ready = training.model.preprocess(images), labels.long().to(target)
        weights = class_weights_from(scenes).to(target)
        step = PublishedStep(training.model, config, weights, ignore_index=training.protocol.ignore_id, total=10**6)
        return lambda: step(*ready) * 0.0
    if target.type == "cpu":
        keep_freed_memory()  # as `train` does
    batches = endless(training.loader)

    def ours() -> float:
        _ = folder  # lives as long as the training
        start = time.perf_counter()
        images, labels = next(batches)
        waited = time.perf_counter() - start
        training.train_step(images, labels)
        if target.type == "cuda":
            torch.cuda.synchronize(target)  # the stopwatch's, not the step's
        return waited

    return ours


def step_config(way: str, name: str, batch: int, size: tuple[int, int]) -> TrainConfig:
    """The preset of a way to train, on RoadScenes and from scratch: neither changes the time of a step."""
    preset = "modern" if way == "modern" else "published-camvid"
    return TrainConfig.preset(
        preset,
        dataset="roadscenes",
        train_split="train",
        val_split="",
        checkpoint_rule="last",
        model=name,
        crop=size,
        batch_size=batch,
        encoder_weights="",
        epochs=10**6,
    )


def measure_loader(
    kind: str, crop: tuple[int, int], batch: int, *, images: int, workers: Sequence[int] = (0,), **stopwatch: Any
) -> Iterator[dict[str, Any]]:
    """Rows of training batches from `images` PNG files of `kind` ("camvid" or "cityscapes", see `files_like`).

    In one process first: the published way and the workbench's loader in turns, without batches made ahead. Then the
    workbench's with each number of `workers` above 0, as fast as they come. `cache_correct`: after one image file was
    written anew, the loader gave its new pixels.

    Raises ValueError for fewer images than a batch has.
    """
    if images < batch:
        raise ValueError(f"{images} images make no batch of {batch}: raise loader_images or lower batch_size")
    with tempfile.TemporaryDirectory() as folder:
        root = files_like(kind, Path(folder), images)
        files = open_dataset(kind, root, "train", cache=False)
        data = cached(files, root / "cache")
        published = DataLoader(PublishedDataset(files, crop), batch, shuffle=True, drop_last=True)
        ours = train_loader(data, crop=crop, batch_size=batch, seed=0, prefetch=0)
        sources = {"published": endless(published), "workbench": endless(ours)}
        calls = {way: partial(next, source) for way, source in sources.items()}
        timings: dict[tuple[str, int], Timing] = {
            (way, 0): timing for way, timing in time_in_turns(calls, CPU, **stopwatch).items()
        }
        for count in (each for each in workers if each):
            source = endless(train_loader(data, crop=crop, batch_size=batch, seed=0, workers=count))
            timings["workbench", count] = time_calls(partial(next, source), CPU, **stopwatch)
            source.close()
        correct = _cache_follows(kind, root)
    for (way, count), timing in timings.items():
        throughput = timing.averaged()  # with workers, batches come in bursts
        yield {
            "kind": kind,
            "images": images,
            "height": crop[0],
            "width": crop[1],
            "batch": batch,
            "way": way,
            "workers": count,
            **timing.row(),
            "samples_per_s": round(batch / throughput.p50, 2),
            **ratio_row(timings["published", 0].averaged(), throughput),
            "cache_correct": correct,
            **session(CPU),
        }


def _cache_follows(kind: str, root: Path) -> bool:
    """Whether the loader gives the new pixels of an image file that was written anew."""
    files = open_dataset(kind, root, "train", cache=False)
    path = files.samples[0].image
    with Image.open(path) as picture:
        changed = 255 - np.array(picture.convert("RGB"))
    Image.fromarray(changed).save(path)
    loader = train_loader(
        cached(files, root / "cache"),
        crop=changed.shape[:2],
        batch_size=len(files),
        seed=0,
        augment=NO_AUGMENT,
        prefetch=0,
    )
    batch, _ = next(iter(loader))
    wanted = torch.from_numpy(changed).permute(2, 0, 1)
    return any(torch.equal(image, wanted) for image in batch)


def measure_metric(size: tuple[int, int], num_classes: int = 11, **stopwatch: Any) -> Iterator[dict[str, Any]]:
    """Rows of scoring one prediction of `size`: the published loop over pixels, a plain bincount, ConfusionMatrix.

    Label and prediction are RoadScenes labels. Raises RuntimeError where the three matrices differ.
    """
    scenes = RoadScenes("val", size=size, count=2)
    label, pred = scenes[0][1], scenes[1][1].clamp(max=num_classes - 1)
    ways: dict[str, Callable[[], np.ndarray]] = {
        "published": lambda: pixel_loop_matrix(pred.numpy(), label.numpy(), num_classes),
        "bincount": lambda: bincount_matrix(pred, label, num_classes).numpy(),
        "workbench": lambda: _confusion(pred, label, num_classes),
    }
    matrices = {way: call() for way, call in ways.items()}
    for way, matrix in matrices.items():
        if not np.array_equal(matrix, matrices["published"]):
            raise RuntimeError(f"{way} counts other pixels than the published loop")
    timings = time_in_turns(ways, CPU, **stopwatch)
    for way, timing in timings.items():
        ratio = ratio_row(timings["published"], timing)
        row = {"height": size[0], "width": size[1], "classes": num_classes, "way": way, **timing.row(), **ratio}
        yield {**row, "exact": True, **session(CPU)}


def bincount_matrix(pred: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """(K, K) counts by the usual one-liner: bincount of label * K + prediction over the scored pixels."""
    scored = label < num_classes
    code = label[scored].long() * num_classes + pred[scored].long()
    return torch.bincount(code, minlength=num_classes**2).view(num_classes, num_classes)


def _confusion(pred: Tensor, label: Tensor, num_classes: int) -> np.ndarray:
    confusion = ConfusionMatrix(num_classes, ignore_index=num_classes)
    confusion.update(pred, label)
    return confusion.matrix.numpy()


def endless(loader: Iterable[Any]) -> Iterator[Any]:
    """Batches, epoch after epoch."""
    while True:
        yield from loader
