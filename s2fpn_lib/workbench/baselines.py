"""Scores of predictors that ignore the image: a network must do better than these."""

from typing import Any

import torch

from s2fpn_lib.data import SegmentationDataset, evenly_spaced
from s2fpn_lib.metrics import ConfusionMatrix


def majority_baselines(dataset: SegmentationDataset, *, limit: int | None = None) -> list[dict[str, Any]]:
    """Scores of two predictors that are fitted to the labels on which they are scored, which favors them: the
    "commonest class" everywhere, and the "commonest class at each position" of the image.

    Returns one row per predictor: baseline, class (None for positions), protocol, split, images, miou, pixel_accuracy.
    """
    protocol, classes = dataset.protocol, dataset.protocol.num_classes
    indices = evenly_spaced(len(dataset), limit)
    counts = torch.zeros(classes + 1, *protocol.size, dtype=torch.int32)  # (class, H, W); the last: ignored pixels
    for index in indices:
        label = dataset[index][1].long().clamp(max=classes)[None]  # (1, H, W)
        counts.scatter_add_(0, label, torch.ones_like(label, dtype=torch.int32))
    everywhere = int(counts[:classes].sum((1, 2)).argmax())
    position = counts[:classes].argmax(0).to(torch.uint8)  # (H, W)
    position[counts[:classes].amax(0) == 0] = everywhere  # positions without a label
    rows = []
    for name, named, guess in (
        ("commonest class", protocol.classes[everywhere], torch.full_like(position, everywhere)),
        ("commonest class at each position", None, position),
    ):
        matrix = ConfusionMatrix(classes, protocol.ignore_id)
        for index in indices:
            matrix.update(guess, dataset[index][1])
        row = {"baseline": name, "class": named, "protocol": protocol.name, "split": dataset.split}
        scores = {"miou": matrix.miou(), "pixel_accuracy": matrix.pixel_accuracy()}
        rows.append({**row, "images": len(indices), **scores})
    return rows
