"""Where the rare classes are: a few pixels of each, so that a crop can be centred on one."""

from __future__ import annotations

import numpy as np

from s2fpn_lib.data.counts import class_shares, label_counts
from s2fpn_lib.data.dataset import SegmentationDataset, read_arrays


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
