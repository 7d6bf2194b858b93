"""What a predictor that never looks at the image would score: the floor that a network must clear."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from s2fpn_lib.data import SegmentationDataset, evenly_spaced
from s2fpn_lib.metrics import ConfusionMatrix


def majority_baselines(
    dataset: SegmentationDataset, *, fit: SegmentationDataset | None = None, limit: int | None = None
) -> list[dict[str, Any]]:
    """Scores of two blind predictors on a split's labels.

    - "commonest class": that class everywhere.
    - "commonest class at each position": at every pixel position the class that is commonest there.

    Args:
        fit: where "commonest" is counted; None: on the evaluated labels themselves, which flatters the baselines.
        limit: as in `evaluate`, for both splits.

    Returns:
        One row a predictor: baseline, protocol, split, images, fitted_on, class (None for positions), miou,
        pixel_accuracy. Scores are shares in 0..1 under the same convention as `evaluate`.
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
    position[counts.amax(0) == 0] = everywhere  # never labelled in the fit
    found = {"commonest class": everywhere, "commonest class at each position": position}
    matrices = {name: ConfusionMatrix(protocol.num_classes, protocol.ignore_id) for name in found}
    indices = evenly_spaced(len(dataset), limit)
    for index in indices:
        label = dataset[index][1]
        matrices["commonest class"].update(torch.full_like(label, everywhere), label)
        matrices["commonest class at each position"].update(_resized(position, tuple(label.shape)), label)
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
    if tuple(label.shape) == tuple(size):
        return label
    return F.interpolate(label[None, None], size=size, mode="nearest-exact")[0, 0]
