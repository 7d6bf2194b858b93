"""Datasets under named evaluation protocols, a decode-once cache, and the training loader."""

from s2fpn_lib.data.dataset import DatasetError, DatasetNotFound, SegmentationDataset, Subset, evenly_spaced
from s2fpn_lib.data.loader import train_loader
from s2fpn_lib.data.open import open_dataset
from s2fpn_lib.data.protocols import PROTOCOLS, Protocol, get_protocol, register
from s2fpn_lib.data.statistics import check_dataset, drive_overlap
from s2fpn_lib.data.transforms import Augment
