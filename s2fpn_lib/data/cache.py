"""Decode once (placeholder for the first commit: no cache yet)."""

from s2fpn_lib.data.dataset import SegmentationDataset


def cached(dataset: SegmentationDataset) -> SegmentationDataset:
    return dataset
