"""Small results to report on: evaluations and finished training runs without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from s2fpn_lib.config import TrainConfig
from s2fpn_lib.evaluate import Evaluation
from s2fpn_lib.metrics import ConfusionMatrix, class_totals


def evaluation(shift: int, *, images_in_split: int = 2, protocol: str = "roadscenes", **provenance: Any) -> Evaluation:
    """Two images of 11 classes in stripes of 5 pixels, predicted `shift` pixels beside the label: IoU falls with it."""
    confusion = ConfusionMatrix(11, 11)
    label = torch.arange(11, dtype=torch.uint8).repeat_interleave(5).repeat(2, 10, 1)  # (2, 10, 55)
    each = confusion.update(label.roll(shift, 2), label)
    settings = {"protocol": protocol, "split": "val", "images": 2, "images_in_split": images_in_split, "device": "cpu"}
    settings |= {"amp": "float32", "scales": "1", "flip": False, "window": "whole image"}
    boundary = torch.full((11,), 0.25, dtype=torch.float64)
    return Evaluation(confusion, class_totals(each), boundary, 0.25, [0, 1], ["a", "b"], settings, 1.0, provenance)


def training_run(folder: Path, **result: Any) -> None:
    """A finished run's records in `folder`."""
    folder.mkdir(parents=True)
    seed = result.get("seed", 0)
    recipe = TrainConfig(dataset="roadscenes", model="s2fpn_lite", seed=seed).recipe()
    (folder / "config.json").write_text(json.dumps(recipe))
    (folder / "metrics.jsonl").write_text('{"epoch": 1, "loss": 2.0, "val_miou": 0.4}\n')
    record = {"checkpoint": "best.safetensors", "checkpoint_rule": "best-val", "val_miou": 0.5, "seconds": 3.0}
    record |= {"dataset": "roadscenes", "protocol": "roadscenes", "val_split": "val", "train_split": "train"}
    record |= {"model": "s2fpn_lite", "revision": "v1", "seed": seed, "epochs": 1}
    (folder / "result.json").write_text(json.dumps(record | result))
