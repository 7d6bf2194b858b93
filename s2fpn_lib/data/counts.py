"""How often each label value occurs: what class weights, the audit and rare-class crops start from."""

from __future__ import annotations

import numpy as np

from s2fpn_lib.data.dataset import SegmentationDataset, View, read_arrays


def label_counts(dataset: SegmentationDataset) -> np.ndarray:
    """Pixels of every label value in every sample, (len, 256) int64; read from the cache where there is one."""
    if hasattr(dataset, "label_counts"):
        return dataset.label_counts()
    items = dataset.items if isinstance(dataset, View) else [(dataset, index) for index in range(len(dataset))]
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
