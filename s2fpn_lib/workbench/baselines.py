"""Scores of predictors that ignore the image: a network must do better than these."""

from typing import Any

import torch
import torch.nn.functional as F

from s2fpn_lib.data import SegmentationDataset, evenly_spaced
from s2fpn_lib.metrics import ConfusionMatrix


def majority_baselines(dataset: SegmentationDataset, *, limit: int | None = None) -> list[dict[str, Any]]:
    """Scores of two predictors that are fitted to the labels on which they are scored, which favors them: the
    "commonest class" everywhere, and the "commonest class at each position" of the image.

    Returns one row per predictor: baseline, protocol, split, images, class (None for positions), miou, pixel_accuracy.
    `limit`, `miou`, and `pixel_accuracy` are those of `evaluate`.
    """
    protocol, classes = dataset.protocol, dataset.protocol.num_classes
    indices = evenly_spaced(len(dataset), limit)
    counts = torch.zeros(classes + 1, *protocol.size, dtype=torch.int32)  # (class, H, W); the last: ignored pixels
    one = torch.ones(1, *protocol.size, dtype=torch.int32)
    for index in indices:
        counts.scatter_add_(0, _resized(dataset[index][1], protocol.size).long().clamp(max=classes)[None], one)
    everywhere = int(counts[:classes].sum((1, 2)).argmax())
    position = counts[:classes].argmax(0).to(torch.uint8)  # (H, W)
    position[counts[:classes].amax(0) == 0] = everywhere  # positions without a label
    guesses = {"commonest class": torch.full_like(position, everywhere), "commonest class at each position": position}
    matrices = {name: ConfusionMatrix(classes, protocol.ignore_id) for name in guesses}
    for index in indices:
        label = dataset[index][1]
        for name, guess in guesses.items():
            matrices[name].update(_resized(guess, label.shape), label)
    common = {"protocol": protocol.name, "split": dataset.split, "images": len(indices)}
    named = {"commonest class": protocol.classes[everywhere]}
    rows = []
    for name, each in matrices.items():
        scores = {"miou": each.miou(), "pixel_accuracy": each.pixel_accuracy()}
        rows.append({"baseline": name, "class": named.get(name), **common, **scores})
    return rows


def _resized(label: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """An (H, W) map of ids at another size; `size` (height, width)."""
    return F.interpolate(label[None, None], size=tuple(size), mode="nearest-exact")[0, 0]
