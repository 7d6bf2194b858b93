"""How often each label value occurs: what class weights, the audit and rare-class crops start from."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from s2fpn_lib.data.dataset import SegmentationDataset, Subset, read_arrays

# MERGED data.rare: """Where the rare classes are: a few pixels of each, so that a crop can be centred on one."""


def label_counts(dataset: SegmentationDataset) -> np.ndarray:
    """Pixels of every label value in every sample, (len, 256) int64; read from the cache where there is one."""
    if hasattr(dataset, "label_counts"):
        return dataset.label_counts()
    items = dataset.items if isinstance(dataset, Subset) else [(dataset, index) for index in range(len(dataset))]
    parts = {id(part): part for part, _ in items}
    stored = {key: part.label_counts() for key, part in parts.items() if hasattr(part, "label_counts")}

    def row(part: SegmentationDataset, index: int) -> np.ndarray:
        if id(part) in stored:
            return stored[id(part)][index]
        return np.bincount(read_arrays(part, index)[1].reshape(-1), minlength=256)  # (H, W) -> (H * W,)

    return np.stack([row(part, index) for part, index in items])


def class_shares(dataset: SegmentationDataset) -> np.ndarray:
    """Share of each class among the labelled (not ignored) pixels, (K,) float64, sum 1."""
    counts = label_counts(dataset).sum(axis=0)[: dataset.protocol.num_classes]
    return counts / max(1, counts.sum())


def rare_classes(dataset: SegmentationDataset, share: float) -> list[int]:
    """Ids of the classes that occur, but in less than ``share`` of the labelled pixels."""
    return [index for index, found in enumerate(class_shares(dataset)) if 0 < found < share]


def rare_pixels(dataset: SegmentationDataset, share: float, most: int = 64) -> list[dict[int, np.ndarray]]:
    """For every sample ``{class id: (n, 2) rows and columns}`` of its rare classes, at most ``most`` pixels a class.

    The pixels are spread evenly over the class's pixels in reading order: no randomness, so every process that makes
    the index makes the same one.
    """
    classes, counts = rare_classes(dataset, share), label_counts(dataset)
    index: list[dict[int, np.ndarray]] = []
    for sample in range(len(dataset)):
        present = [each for each in classes if counts[sample, each]]
        label = read_arrays(dataset, sample)[1] if present else None
        index.append({each: _spread(label, each, most) for each in present})
    return index


def _spread(label: np.ndarray, class_id: int, most: int) -> np.ndarray:
    flat = np.flatnonzero(label == class_id)
    chosen = flat[np.linspace(0, len(flat) - 1, min(most, len(flat))).round().astype(np.int64)]
    return np.stack(np.divmod(chosen, label.shape[1]), axis=1)  # (n,) -> (n, 2)


PUBLISHED_WEIGHT_CONSTANT = 1.10


def class_weights_from(dataset: SegmentationDataset, rule: str | float = "published") -> Tensor:
    """(K,) float32 class weights 1 / ln(c + share), share = the class's part of all labelled pixels (ENet's rule).

    Args:
        dataset: `open_dataset(...)`; every label is read once.
        rule: "published" (c = 1.10), or c itself, above 1 so that an absent class still has a finite weight.

    Raises:
        ValueError: c is not above 1, a label holds a foreign id (the sample is named), or no pixel is labelled.
    """
    constant = PUBLISHED_WEIGHT_CONSTANT if rule == "published" else rule
    if isinstance(constant, str) or constant <= 1:
        raise ValueError(
            f'class weight rule is {rule!r}; use "published" or the c of 1/ln(c + share), a number above 1'
        )
    pixels = class_pixels(dataset)
    if not pixels.any():
        raise ValueError(f"no pixel of {dataset.name} {dataset.split} carries a class: class weights are undefined")
    share = pixels.double() / pixels.sum()
    return (1 / torch.log(constant + share)).float()


def class_pixels(dataset: SegmentationDataset) -> Tensor:
    """(K,) int64 number of pixels of each class over the dataset's labels, ignored pixels left out."""
    protocol = dataset.protocol
    counts = torch.from_numpy(label_counts(dataset))  # (samples, 256)
    foreign = counts.bool()
    foreign[:, list(protocol.label_ids)] = False
    if foreign.any():
        sample, label_id = foreign.nonzero()[0].tolist()
        raise ValueError(
            f"label of {dataset.names[sample]} ({dataset.name} {dataset.split}) holds the id {label_id}; "
            f"{protocol.name} knows 0..{protocol.num_classes - 1} and the ignored id {protocol.ignore_id}"
        )
    return counts.sum(0)[: protocol.num_classes]
