"""How often each label value occurs: what class weights, the audit and rare-class crops start from."""

from __future__ import annotations

import numpy as np

from s2fpn_lib.data.dataset import SegmentationDataset, View, read_arrays


def label_counts(dataset: SegmentationDataset) -> np.ndarray:
    """Pixels of every label value in every sample, (len, 256) int64; read from the cache where there is one."""
    if hasattr(dataset, "label_counts"):
        return dataset.label_counts()
    if isinstance(dataset, View):
        parts = {id(part): label_counts(part) for part in dataset.parts}
        return np.stack([parts[id(part)][index] for part, index in dataset.items])
    rows = (read_arrays(dataset, index)[1].reshape(-1) for index in range(len(dataset)))  # (H, W) -> (H * W,)
    return np.stack([np.bincount(row, minlength=256) for row in rows])


def class_shares(dataset: SegmentationDataset) -> np.ndarray:
    """Share of each class among the labelled (not ignored) pixels, (K,) float64, sum 1."""
    counts = label_counts(dataset).sum(axis=0)[: dataset.protocol.num_classes]
    return counts / max(1, counts.sum())
