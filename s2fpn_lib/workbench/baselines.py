"""Scores of predictors that ignore the image: a network must do better than these."""

from typing import Any

import torch
import torch.nn.functional as F

from s2fpn_lib.data import SegmentationDataset, evenly_spaced
from s2fpn_lib.metrics import ConfusionMatrix


def majority_baselines(
    dataset: SegmentationDataset, *, fit: SegmentationDataset | None = None, limit: int | None = None
) -> list[dict[str, Any]]:
    """Scores of two predictors on a split's labels.

    - "commonest class": that class everywhere.
    - "commonest class at each position": at every pixel position the class that is most frequent there.

    Args:
        fit: the split whose labels are counted. None counts the evaluated labels, which favors the baselines.
        limit: number of images as in `evaluate`, for both splits.

    Returns:
        One row per predictor: baseline, protocol, split, images, images_in_split, fitted_on, class (None for
        positions), miou, pixel_accuracy. Scores are fractions in 0..1 under the same convention as `evaluate`.
    """
    fit = dataset if fit is None else fit
    protocol = dataset.protocol
    if fit.protocol.name != protocol.name:
        raise ValueError(f"fit has protocol {fit.protocol.name}, the split {protocol.name}: use one dataset for both")
    counts = torch.zeros(protocol.num_classes, *protocol.size, dtype=torch.int32)  # labels at every position
    for index in evenly_spaced(len(fit), limit):
        label = _resized(fit[index][1], protocol.size)
        for k in label.unique().tolist():
            if k < protocol.num_classes:
                counts[k] += label == k
    everywhere = int(counts.flatten(1).sum(1, dtype=torch.int64).argmax())
    position = counts.argmax(0).to(torch.uint8)  # (H, W)
    position[counts.amax(0) == 0] = everywhere  # positions without a label
    guesses = {
        "commonest class": torch.full_like(position, everywhere),
        "commonest class at each position": position,
    }
    matrices = {name: ConfusionMatrix(protocol.num_classes, protocol.ignore_id) for name in guesses}
    indices = evenly_spaced(len(dataset), limit)
    for index in indices:
        label = dataset[index][1]
        for name, guess in guesses.items():
            matrices[name].update(_resized(guess, label.shape), label)
    return [
        {
            "baseline": name,
            "protocol": protocol.name,
            "split": dataset.split,
            "images": len(indices),
            "images_in_split": len(dataset),
            "fitted_on": fit.split,
            "class": protocol.classes[everywhere] if name == "commonest class" else None,
            "miou": matrix.miou(),
            "pixel_accuracy": matrix.pixel_accuracy(),
        }
        for name, matrix in matrices.items()
    ]


def _resized(label: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """An (H, W) map of ids at another size; `size` (height, width)."""
    return F.interpolate(label[None, None], size=tuple(size), mode="nearest-exact")[0, 0]
