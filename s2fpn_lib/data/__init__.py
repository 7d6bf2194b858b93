"""Datasets under named protocols, a decode-once cache and the training loader."""

from s2fpn_lib.data.dataset import DatasetError, DatasetNotFound, SegmentationDataset
from s2fpn_lib.data.open import open_dataset
from s2fpn_lib.data.protocols import PROTOCOLS, Protocol, get_protocol

__all__ = [
    "PROTOCOLS",
    "DatasetError",
    "DatasetNotFound",
    "Protocol",
    "SegmentationDataset",
    "get_protocol",
    "open_dataset",
]
