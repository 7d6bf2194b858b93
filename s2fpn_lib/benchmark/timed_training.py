"""A training that fits into the time that is left, with rows for train.jsonl: a measurement gives its number of epochs.

The stages are the presets `STAGES`, each starting from the weights of the one before; each has a folder in the results
with its metrics, weights, evaluation, and a picture of predictions.
"""

import contextlib
import os
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from s2fpn_lib.benchmark.ways import Rows, Task, allow_tf32
from s2fpn_lib.config import TrainConfig
from s2fpn_lib.data import evenly_spaced
from s2fpn_lib.evaluate import evaluate
from s2fpn_lib.model import build_model
from s2fpn_lib.runs import atomic_file
from s2fpn_lib.state import open_splits
from s2fpn_lib.train import train
from s2fpn_lib.viz.images import prediction_views

STAGES = {"lite-camvid-gpu-own": 0.5, "lite-camvid-gpu": 1.0}  # and their shares of the time that is left
# On a CPU the same code runs on a small network and few small crops
SMALL = {"model": "s2fpn_lite", "crop": (32, 48), "batch_size": 16, "workers": 0, "compile": False, "eval_images": 4}
SMALL |= {"dataset": "roadscenes", "train_split": "train:drive=park", "val_split": "val:drive=park"}
SLACK = 0.9  # share of the time to plan with
MEASURED = 4  # epochs; the first one starts processes and loads kernels


def tasks(device: torch.device, end: float, out: Path) -> dict[str, Task]:
    """One task per stage; `end` is the time.monotonic at which the part ends."""
    return {stage: (5.0, partial(train_stage, stage, device, end, out)) for stage in STAGES}


def train_stage(stage: str, device: torch.device, end: float, out: Path) -> Rows:
    """Trains one preset, and yields its summary with the evaluation of the weights that it returned."""
    allow_tf32(True)
    began = time.monotonic()
    seconds = STAGES[stage] * (end - began)
    earlier = [out / each for each in STAGES if each != stage and (out / each / "result.json").exists()]
    workers = max(1, min(12, (os.cpu_count() or 1) - 2))
    changes = {"dataset": "auto", "workers": workers} if device.type == "cuda" else SMALL
    preset = partial(TrainConfig.preset, stage, **changes, device=str(device))
    start = {"init_from": str(earlier[-1])} if earlier else {"encoder_weights": encoder_weights(preset().model)}
    config, planned = fitted(preset(**start), seconds)
    left = seconds - (time.monotonic() - began)
    result = train(config.replace(max_minutes=left / 60), run_dir=out / stage, progress=False)
    for state in result.run_dir.glob("*.pt"):
        state.unlink()
    _, val_set = open_splits(config)
    model = result.model.to(device)
    evaluation = evaluate(model, val_set, batch_size=8, limit=config.eval_images or None, progress=False)
    evaluation.provenance |= {"checkpoint": result.checkpoint.name, "model": config.model, "seed": config.seed}
    evaluation.save(result.run_dir / "evaluation.json")
    rows = [np.concatenate(prediction_views(model, val_set, i), axis=1) for i in evenly_spaced(len(val_set), 5)]
    with atomic_file(result.run_dir / "predictions.png") as file:
        Image.fromarray(np.concatenate(rows)).save(file, "PNG")
    yield "train.jsonl", {"preset": stage, **planned, **result.summary, **evaluation.row()}


def encoder_weights(model: str) -> str:
    """The first that fits of the .pth files in the data's folder and the installed package "imagenet"; else none."""
    for source in (*sorted(Path(os.environ.get("S2FPN_DATA", "data")).glob("*.pth")), "imagenet"):
        with contextlib.suppress(ImportError, RuntimeError, OSError):
            build_model(model, num_classes=2, encoder_weights=source)
            return str(source)
    return ""


def fitted(config: TrainConfig, seconds: float) -> tuple[TrainConfig, dict[str, float]]:
    """The configuration with as many epochs as fit into `seconds`, and the measured times; ValueError for none."""
    began = time.monotonic()
    short = config.replace(epochs=MEASURED, eval_every=1, max_minutes=seconds / 240)
    with tempfile.TemporaryDirectory() as folder:
        history = train(short, run_dir=folder, progress=False).history
    measuring = time.monotonic() - began
    later, images = history[1:] or history, config.batch_size * history[0]["step"]
    epoch = statistics.median(row["seconds"] for row in later)  # with its validation
    training = statistics.median(images / row["images_per_s"] for row in later)
    start_up, validation = measuring - epoch * len(history), epoch - training
    left = SLACK * (seconds - measuring - start_up) - 2 * validation
    epochs = int(left / (training + validation / config.eval_every))
    if epochs < 1:
        needed = (training + start_up + 3 * validation) / SLACK + measuring
        raise ValueError(f"{seconds:.0f} s are too few for an epoch of {training:.2f} s, which needs {needed:.0f} s")
    planned = {"seconds_given": seconds, "epoch": training, "start_up": start_up, "validation": validation}
    eval_every = min(config.eval_every, max(1, epochs // 4))
    return config.replace(epochs=epochs, eval_every=eval_every), {key: round(v, 3) for key, v in planned.items()}
