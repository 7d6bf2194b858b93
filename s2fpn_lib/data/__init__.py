"""Datasets under named protocols, a decode-once cache and the training loader."""

from s2fpn_lib.data.audit import AuditReport, check_dataset, drive_overlap
from s2fpn_lib.data.augment import NO_AUGMENT, PUBLISHED_SCALES, Augment
from s2fpn_lib.data.cache import CachedDataset
from s2fpn_lib.data.cache_folder import CacheSpaceError
from s2fpn_lib.data.counts import class_shares, label_counts
from s2fpn_lib.data.dataset import DatasetError, DatasetNotFound, SegmentationDataset, View
from s2fpn_lib.data.loader import TrainLoader, train_loader
from s2fpn_lib.data.open import open_dataset
from s2fpn_lib.data.protocols import PROTOCOLS, Protocol, get_protocol

__all__ = [
    "NO_AUGMENT",
    "PROTOCOLS",
    "PUBLISHED_SCALES",
    "AuditReport",
    "Augment",
    "CacheSpaceError",
    "CachedDataset",
    "DatasetError",
    "DatasetNotFound",
    "Protocol",
    "SegmentationDataset",
    "TrainLoader",
    "View",
    "check_dataset",
    "class_shares",
    "drive_overlap",
    "get_protocol",
    "label_counts",
    "open_dataset",
    "train_loader",
]
