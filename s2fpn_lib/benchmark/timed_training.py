"""A training that fits into the time that is left: its number of epochs follows from measured steps.

Tasks give rows for train.jsonl. The stages are the presets `STAGES`, each starting from the weights of the one before;
each has a folder in the results with its metrics, weights, evaluation, and a picture of predictions.
"""

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from s2fpn_lib.benchmark.training import endless
from s2fpn_lib.benchmark.ways import Rows, Task, allow_tf32
from s2fpn_lib.config import TrainConfig
from s2fpn_lib.data import SegmentationDataset, evenly_spaced
from s2fpn_lib.evaluate import Evaluation, evaluate
from s2fpn_lib.model import build_model
from s2fpn_lib.runs import RunDirectory
from s2fpn_lib.state import TrainingState, open_splits
from s2fpn_lib.train import train, train_step
from s2fpn_lib.viz.images import prediction_views

STAGES = {"lite-camvid-gpu-own": 0.5, "lite-camvid-gpu": 1.0}  # and their shares of the time that is left
# On a CPU the same code runs on a small network and few small crops
SMALL = {"model": "s2fpn_lite", "crop": (48, 64), "batch_size": 8, "workers": 0, "compile": False, "eval_images": 4}
SMALL |= {"dataset": "roadscenes", "train_split": "train:drive=park", "val_split": "val:drive=park"}
SLACK = 0.9  # share of the time to plan with
LEAST_STEPS, LEAST_SECONDS = 5, 2.0  # of the measurement


def tasks(device: torch.device, end: float, out: Path) -> dict[str, Task]:
    """One task per stage; `end` is the time.monotonic at which the part ends."""
    return {stage: (5.0, partial(train_stage, stage, device, end, out)) for stage in STAGES}


def train_stage(stage: str, device: torch.device, end: float, out: Path) -> Rows:
    """Trains one preset, and yields its summary with the evaluation of the weights that it returned."""
    allow_tf32(True)
    seconds = STAGES[stage] * (end - time.monotonic())
    stages = list(STAGES)
    earlier = [out / each for each in stages[: stages.index(stage)] if (out / each / "result.json").exists()]
    workers = max(1, min(12, (os.cpu_count() or 1) - 2))
    changes = {"dataset": "auto", "workers": workers} if device.type == "cuda" else SMALL
    changes = {**changes, "device": str(device)}
    if earlier:
        config = TrainConfig.preset(stage, init_from=str(earlier[-1]), **changes)
    else:
        config = TrainConfig.preset(stage, **changes)
        config = config.replace(encoder_weights=encoder_weights(config.model))
    began = time.monotonic()
    config, planned = fitted(config, device, seconds)
    left = seconds - (time.monotonic() - began)
    result = train(config.replace(max_minutes=left / 60), run_dir=out / stage, progress=False)
    for state in (result.run_dir / "last.pt", result.run_dir / "previous.pt"):
        state.unlink(missing_ok=True)
    _, val_set = open_splits(config)
    model = result.model.to(device)
    evaluation = score(model, val_set, config)
    evaluation.provenance |= {"checkpoint": result.checkpoint.name, "model": config.model, "seed": config.seed}
    evaluation.save(result.run_dir / "evaluation.json")
    rows = [np.concatenate(prediction_views(model, val_set, i), axis=1) for i in evenly_spaced(len(val_set), 5)]
    Image.fromarray(np.concatenate(rows)).save(result.run_dir / "predictions.png")
    yield "train.jsonl", {"preset": stage, **planned, **result.summary, **evaluation.row()}


def encoder_weights(model: str) -> str:
    """The first that fits of the .pth files in the data's folder and the installed package "imagenet"; else none."""
    for source in (*sorted(Path(os.environ.get("S2FPN_DATA", "data")).glob("*.pth")), "imagenet"):
        with contextlib.suppress(ImportError, RuntimeError, OSError):
            build_model(model, num_classes=2, encoder_weights=source)
            return str(source)
    return ""


def fitted(config: TrainConfig, device: torch.device, seconds: float) -> tuple[TrainConfig, dict[str, float]]:
    """The configuration with as many epochs as fit into `seconds`, and what was measured to find their number.

    Raises ValueError if there is no time for one epoch.
    """
    began = time.monotonic()
    train_set, val_set = open_splits(config)
    search = device.type == "cuda" and not config.model.startswith("s2fpn_lite")  # as `train` does
    with tempfile.TemporaryDirectory() as folder, torch.backends.cudnn.flags(enabled=True, benchmark=search):
        state = TrainingState(config, train_set, val_set, device, RunDirectory(folder))
        state.model.train()
        batches = endless(state.loader)
        ready = time.monotonic()
        timed_steps(state, batches, 3)
        start_up = time.monotonic() - ready
        count, step = LEAST_STEPS, timed_steps(state, batches, LEAST_STEPS)
        while count * step < LEAST_SECONDS:
            count *= 2
            step = timed_steps(state, batches, count)
        ready = time.monotonic()
        score(state.averaged, val_set, config)
        validation = time.monotonic() - ready
        steps = len(state.loader)
        del state, batches  # ends the loader's processes
    measuring = time.monotonic() - began
    left = SLACK * (seconds - measuring - start_up) - 2 * validation
    epochs = int(left / (steps * step + validation / config.eval_every))
    if epochs < 1:
        needed = (steps * step + start_up + 3 * validation) / SLACK + measuring
        raise ValueError(f"{seconds:.0f} s are too few for an epoch of {steps} steps, which needs about {needed:.0f} s")
    measured = {"seconds_given": seconds, "seconds_per_step": step, "start_up": start_up, "validation": validation}
    eval_every = min(config.eval_every, max(1, epochs // 4))
    return config.replace(epochs=epochs, eval_every=eval_every), {key: round(v, 4) for key, v in measured.items()}


def score(model: nn.Module, val_set: SegmentationDataset, config: TrainConfig) -> Evaluation:
    return evaluate(model, val_set, batch_size=8, limit=config.eval_images or None, progress=False)


def timed_steps(state: TrainingState, batches: Iterator, count: int) -> float:
    """Seconds per step, with the wait for its batch."""
    start = time.monotonic()
    for _ in range(count):
        train_step(state, *next(batches))
    float(state.loss_sum)  # waits for the device
    return (time.monotonic() - start) / count
