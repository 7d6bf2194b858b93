"""Speed of the training step and the loader, each in turns with the published implementation.

One row per implementation, named in its column `way`, with its protocol, the columns of `Timing.row`, and the ratios to
the published implementation.
"""

import itertools
import multiprocessing
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from s2fpn_lib.benchmark.inference import CPU, session
from s2fpn_lib.benchmark.published import PublishedDataset, PublishedStep
from s2fpn_lib.benchmark.timing import time_in_turns
from s2fpn_lib.config import TrainConfig
from s2fpn_lib.data import DatasetNotFound, get_protocol, open_dataset, train_loader
from s2fpn_lib.data.cache import cached
from s2fpn_lib.data.files import to_label_ids
from s2fpn_lib.data.images import read_image
from s2fpn_lib.data.roadscenes.dataset import RoadScenes, render_scene
from s2fpn_lib.data.statistics import class_weights_from
from s2fpn_lib.distributed import keep_freed_memory
from s2fpn_lib.losses import DeepSupervisionLoss
from s2fpn_lib.model import S2FPN
from s2fpn_lib.runs import RunDirectory
from s2fpn_lib.state import TrainingState
from s2fpn_lib.train import train_step

STEPS = ("published", "plain pieces", "same loss", "modern")
# Of the files for the loader: protocol, and the paths of image and label
LAYOUTS = {
    "camvid": ("camvid-segnet-360x480", "camvid/train/{}.png", "camvid/trainannot/{}.png"),
    "cityscapes": (
        "cityscapes-fine-1024x2048",
        "cityscapes/leftImg8bit/train/drawn/{}_leftImg8bit.png",
        "cityscapes/gtFine/train/drawn/{}_gtFine_labelIds.png",
    ),
}
DRAWN = 8  # different images at most: drawing takes much longer than decoding


def measure_training(
    name: str, size: tuple[int, int], batch: int, *, device: str = "cpu", **stopwatch: Any
) -> Iterator[dict[str, Any]]:
    """Rows of one optimizer step of network `name` on crops of `size` (height, width), see `make_step`.

    Each implementation has its own process, because malloc is configured per process. data_ms: median time that the
    step waited for its batch.
    """
    context = multiprocessing.get_context("forkserver")  # which imports this module once
    context.set_forkserver_preload([__name__])
    with ExitStack() as stack:
        calls = {}
        for step in STEPS:
            pool = ProcessPoolExecutor(1, context, initializer=_start_process, initargs=(torch.get_num_threads(),))
            run = partial(stack.enter_context(pool).submit, _run_step, step, name, size, batch, device)
            calls[step] = lambda run=run: run().result()  # returns the time that the step waited
        timings = time_in_turns(calls, CPU, **stopwatch)
    protocol = {"network": name, "height": size[0], "width": size[1], "batch": batch}
    for step, timing in timings.items():
        row = {**protocol, "way": step, **timing.row(), "images_per_s": round(batch / timing.p50, 3)}
        row["data_ms"] = round(1e3 * statistics.median(itertools.chain(*timing.parts)), 3)
        yield {**row, **timing.ratio_row(timings["published"]), **session(torch.device(device))}


def _start_process(threads: int) -> None:
    """Sets torch's threads; ends the process with its parent, which ProcessPoolExecutor does not do after a kill."""
    torch.set_num_threads(threads)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _run_step(*options: Any) -> float:
    return make_step(*options)()


@cache
def make_step(
    step: str, name: str, size: tuple[int, int], batch: int, device: str, resident: bool = False
) -> Callable[[], float]:
    """A function that trains one step of the implementation and returns the seconds that it waited for its batch.

    step: "published" (`PublishedStep` on a batch in memory), "plain pieces" (`plain_step` on it), "same loss" (the
    workbench's step with the same loss and gradients, and its loader), "modern" (the step of that preset), "compiled",
    or "compiled, CUDA graphs" (modern with such a network). resident: train on one batch, which stays on the device.
    """
    config = step_config(step, name, batch, size)
    target = torch.device(device)
    folder = tempfile.TemporaryDirectory()
    scenes = RoadScenes("train", size=size, count=batch if resident else max(32, batch))
    scenes = cached(scenes, Path(folder.name) / "cache")
    state = TrainingState(config, scenes, None, target, RunDirectory(folder.name))
    state.model.train()
    if step == "compiled, CUDA graphs":
        state.network = torch.compile(state.model, mode="reduce-overhead")
    if step in STEPS[:2]:
        images, labels = next(iter(state.loader))
        ready = state.model.preprocess(images), labels.long().to(target)
        weights = class_weights_from(scenes).to(target)
        if step == "plain pieces":
            return plain_step(state.model, DeepSupervisionLoss(state.protocol.ignore_id, weights), *ready)
        published = PublishedStep(state.model, config, weights, ignore_index=state.protocol.ignore_id, total=10**6)
        return lambda: published(*ready) * 0.0
    if target.type == "cpu":
        keep_freed_memory()  # as `train` does
    one = [tuple(part.to(target) for part in next(iter(state.loader)))] if resident else state.loader
    batches = endless(one)

    def ours() -> float:
        _ = folder  # exists as long as the training
        start = time.perf_counter()
        images, labels = next(batches)
        waited = time.perf_counter() - start
        train_step(state, images, labels)
        if target.type == "cuda":
            torch.cuda.synchronize(target)  # for the stopwatch
        return waited

    return ours


def plain_step(model: S2FPN, criterion: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], float]:
    """A step as in a script without `train`: network, loss, and fused Adam, and no setting of malloc."""
    optimizer = torch.optim.Adam(model.parameters(), fused=True)

    def step() -> float:
        optimizer.zero_grad()
        criterion(model(images, aux=True, resize=False), labels).backward()
        optimizer.step()
        return 0.0  # waits for no batch

    return step


def step_config(step: str, name: str, batch: int, size: tuple[int, int]) -> TrainConfig:
    """The preset of an implementation, on RoadScenes without pretraining: neither changes the time of a step."""
    preset = "published-camvid" if step in STEPS[:3] else "modern"
    data = {"dataset": "roadscenes", "train_split": "train", "val_split": "", "checkpoint_rule": "last"}
    network = {"model": name, "encoder_weights": "", "crop": size, "batch_size": batch}
    how = {"compile": step == "compiled", "channels_last": step != "plain pieces"}
    return TrainConfig.preset(preset, **data, **network, **how, epochs=10**6)


def measure_loader(
    kind: str, crop: tuple[int, int], batch: int, *, images: int, workers: Sequence[int] = (0,), **stopwatch: Any
) -> Iterator[dict[str, Any]]:
    """Rows of training batches from `images` PNG files of `kind` ("camvid" or "cityscapes", see `files_like`).

    First the published loader and the workbench's in turns in one process, then the workbench's with each number of
    `workers` above 0. `cache_correct`: after an image file was overwritten, the cache returned its new pixels.
    """
    if images < batch:
        raise ValueError(f"{images} images make no batch of {batch}: raise loader_images or lower batch_size")
    with tempfile.TemporaryDirectory() as folder:
        root = files_like(kind, Path(folder), images)
        files = open_dataset(kind, root, "train", cache=False)
        load = partial(train_loader, cached(files, root / "cache"), crop=crop, batch_size=batch, seed=0)
        published = endless(DataLoader(PublishedDataset(files, crop), batch, shuffle=True, drop_last=True))
        calls = {("published", 0): partial(next, published), ("workbench", 0): partial(next, endless(load()))}
        timings = time_in_turns(calls, CPU, **stopwatch)
        for count in filter(None, workers):
            several = {("workbench", count): partial(next, endless(load(workers=count)))}
            timings |= time_in_turns(several, CPU, **stopwatch)
            several.clear()  # ends the worker processes
        path = files.samples[0].image
        changed = 255 - read_image(path)
        Image.fromarray(changed).save(path)
        image, _ = cached(files, root / "cache")[0]
        correct = np.array_equal(image.permute(1, 2, 0), changed)
    protocol = {"kind": kind, "images": images, "height": crop[0], "width": crop[1], "batch": batch}
    for (implementation, count), timing in timings.items():
        throughput = timing.averaged()  # workers deliver batches in bursts
        row = {**protocol, "way": implementation, "workers": count, **timing.row(), "cache_correct": correct}
        row |= {"spread": throughput.row()["spread"], "samples_per_s": round(batch / throughput.p50, 2)}
        yield {**row, **throughput.ratio_row(timings["published", 0].averaged()), **session(CPU)}


def endless(loader: Iterable[Any]) -> Iterator[Any]:
    """Batches, epoch after epoch."""
    return itertools.chain.from_iterable(itertools.repeat(loader))


def files_like(kind: str, folder: Path, images: int) -> Path:
    """Writes `images` pairs of image and label into `folder`, in the dataset's layout; returns the root to open.

    "camvid": copies of the train split that `open_dataset` finds, otherwise RoadScenes at 360x480. "cityscapes":
    RoadScenes at 1024x2048, labels as gtFine's labelIds. Images are repeated where there are too few, or `DRAWN` drawn.
    Raises ValueError for another kind.
    """
    if kind not in LAYOUTS:
        raise ValueError(f"loader_data holds {kind!r}; choose from {', '.join(LAYOUTS)}")
    protocol, *layouts = LAYOUTS[kind]
    found: Sequence[Sequence[Path]] = ()
    if kind == "camvid":
        with suppress(DatasetNotFound):
            found = open_dataset("camvid", None, "train", cache=False).samples
    pairs = [[folder / layout.format(f"0000XX_{number:06d}") for layout in layouts] for number in range(images)]
    for number, pair in enumerate(pairs):
        for path in pair:
            path.parent.mkdir(parents=True, exist_ok=True)
        if found or number >= DRAWN:
            sources = found[number % len(found)] if found else pairs[number % DRAWN]
            for source, path in zip(sources, pair, strict=True):
                shutil.copyfile(source, path)
            continue
        pixels, ids = render_scene(number, get_protocol(protocol).size)
        if kind == "cityscapes":  # RoadScenes' classes become the first eleven: the ids do not change the time
            ids = to_label_ids(np.where(ids < 11, ids, 255).astype(np.uint8))
        for array, path in zip((pixels, ids), pair, strict=True):
            Image.fromarray(array).save(path)
    return folder
