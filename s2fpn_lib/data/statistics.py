"""Class frequencies of a dataset: label counts, class weights, and the pixels of rare classes."""

import numpy as np
import torch
from torch import Tensor

from s2fpn_lib.data.dataset import SegmentationDataset

PUBLISHED_WEIGHT_CONSTANT = 1.10


def label_counts(dataset: SegmentationDataset) -> np.ndarray:
    """Pixels of each label value in each sample, (len, 256) int64; read from the cache where there is one."""
    return np.stack([dataset.label_summary(index)[1] for index in range(len(dataset))])


def class_pixels(dataset: SegmentationDataset) -> Tensor:
    """(K,) int64 number of pixels of each class over the dataset's labels, without ignored pixels.

    Raises:
        ValueError: a label holds an id that the protocol does not declare; the message names the sample.
    """
    protocol = dataset.protocol
    counts = torch.from_numpy(label_counts(dataset))  # (samples, 256)
    undeclared = counts.bool()
    undeclared[:, list(protocol.label_ids)] = False
    if undeclared.any():
        sample, label_id = undeclared.nonzero()[0].tolist()
        raise ValueError(
            f"label of {dataset.names[sample]} ({dataset.name} {dataset.split}) holds the id {label_id}; "
            f"{protocol.name} declares 0..{protocol.num_classes - 1} and the ignored id {protocol.ignore_id}"
        )
    return counts.sum(0)[: protocol.num_classes]


def class_weights_from(dataset: SegmentationDataset, rule: str | float = "published") -> Tensor:
    """(K,) float32 class weights 1 / ln(c + share), where share is the class's part of all labeled pixels (ENet).

    Args:
        dataset: `open_dataset(...)`; every label is read once.
        rule: "published" (c = 1.10), or c itself, above 1 so that an absent class still has a finite weight.

    Raises:
        ValueError: c is not above 1, a label holds an undeclared id, or no pixel is labeled.
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


def rare_pixels(dataset: SegmentationDataset, share: float, most: int = 64) -> list[dict[int, np.ndarray]]:
    """For each sample ``{class id: (n, 2) rows and columns}`` of its rare classes, at most ``most`` pixels per class.

    A class is rare if it has less than ``share`` of the labeled pixels. The pixels are evenly spaced over the class's
    pixels in reading order, without randomness, so every process finds the same ones.
    """
    pixels = class_pixels(dataset).numpy()
    rare = [each for each, count in enumerate(pixels) if 0 < count / pixels.sum() < share]
    found: list[dict[int, np.ndarray]] = []
    for index, counts in enumerate(label_counts(dataset)):
        present = [each for each in rare if counts[each]]
        label = dataset.arrays(index)[1] if present else None
        found.append({each: _spread(label, each, most) for each in present})
    return found


def _spread(label: np.ndarray, class_id: int, most: int) -> np.ndarray:
    flat = np.flatnonzero(label == class_id)
    chosen = flat[np.linspace(0, len(flat) - 1, min(most, len(flat))).round().astype(np.int64)]
    return np.stack(np.divmod(chosen, label.shape[1]), axis=1)  # (n,) -> (n, 2)
