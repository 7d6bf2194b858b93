"""The form of every dataset: pairs of a uint8 image and a uint8 label under an evaluation protocol."""

import hashlib
import itertools
import json
import zlib
from collections.abc import Collection, Sequence

import numpy as np
import torch

from s2fpn_lib.data.protocols import Protocol


class DatasetNotFound(FileNotFoundError):
    """The dataset was not found; the message says where it was searched for and how to get it."""


class DatasetError(ValueError):
    """Files of a dataset are broken; the message names them."""


class SegmentationDataset:
    """``dataset[i]`` is ``(image (3, H, W), label (H, W))``, both uint8 tensors on the CPU; the image is RGB."""

    protocol: Protocol  # classes, palette, ignored id, and evaluation size
    split: str  # as requested, including a choice of drives
    names: list[str]  # one stable id per sample, e.g. 0016E5_07959
    drives: list[str]  # one recording per sample (CamVid drive, Cityscapes city, RoadScenes scene family)
    problems: tuple[str, ...] = ()  # errors found while pairing files; `check_dataset` reports them
    _digest = ""  # computed once: a dataset object stands for the data at the time when it was opened

    @property
    def name(self) -> str:
        """``camvid``, ``cityscapes``, ``roadscenes``, or the name of the user's own dataset."""
        return self.protocol.dataset

    def __len__(self) -> int:
        return len(self.names)

    def arrays(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """``(image (H, W, 3), label (H, W))`` as uint8 arrays, read-only because they may share the cache's memory."""
        raise NotImplementedError

    def label_summary(self, index: int) -> tuple[tuple[int, int], np.ndarray]:
        """``((height, width), pixels of each label value (256,) int64)`` of one sample."""
        label = self.arrays(index)[1]
        return label.shape, np.bincount(label.reshape(-1), minlength=256)  # (H, W) -> (H * W,)

    def label_source(self, index: int) -> str:
        """The name of a label in error messages: its file where there is one."""
        return self.names[index]

    def fingerprint(self, index: int) -> tuple[int, int, int]:
        """Height, width, and CRC-32 of the pixels of image and label, in this order."""
        return fingerprint(*self.arrays(index))

    def digest(self) -> str:
        """12 hex digits that identify the data: classes, scored size, and the name, size, and pixels of each sample."""
        if not self._digest:
            rules = [self.protocol.name, self.protocol.classes, self.protocol.ignore_id, self.protocol.size]
            samples = [[name, *self.fingerprint(index)] for index, name in enumerate(self.names)]
            self._digest = hashlib.sha256(json.dumps([rules, samples]).encode()).hexdigest()[:12]
        return self._digest

    def class_problems(self, occurring: Collection[int]) -> list[str]:
        """Further errors for the audit, given the ids of the classes that occur in this split."""
        return []

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, label = self.arrays(index)
        # (H, W, 3) -> (3, H, W); a copy, which the caller may change
        planes = np.array(image.transpose(2, 0, 1), order="C")
        return torch.from_numpy(planes), torch.from_numpy(np.array(label))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name}, split={self.split!r}, {len(self)} samples)"


class Subset(SegmentationDataset):
    """Chosen samples of one or several datasets under one protocol, in the given order."""

    def __init__(self, items: Sequence[tuple[SegmentationDataset, int]], split: str, like: SegmentationDataset) -> None:
        self.items, self.protocol, self.split = list(items), like.protocol, split
        parts = dict.fromkeys(dataset for dataset, _ in self.items)
        self.problems = tuple(problem for part in parts for problem in part.problems)
        self.names = [dataset.names[index] for dataset, index in self.items]
        self.drives = [dataset.drives[index] for dataset, index in self.items]

    def arrays(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        dataset, inner = self.items[index]
        return dataset.arrays(inner)

    def label_summary(self, index: int) -> tuple[tuple[int, int], np.ndarray]:
        dataset, inner = self.items[index]
        return dataset.label_summary(inner)

    def label_source(self, index: int) -> str:
        dataset, inner = self.items[index]
        return dataset.label_source(inner)

    def fingerprint(self, index: int) -> tuple[int, int, int]:
        dataset, inner = self.items[index]
        return dataset.fingerprint(inner)

    def class_problems(self, occurring: Collection[int]) -> list[str]:
        return self.items[0][0].class_problems(occurring) if self.items else []


def fingerprint(image: np.ndarray, label: np.ndarray) -> tuple[int, int, int]:
    """Height, width, and CRC-32 of the pixels of an image (H, W, 3) and a label (H, W)."""
    return *label.shape, zlib.crc32(np.ascontiguousarray(label), zlib.crc32(np.ascontiguousarray(image)))


def evenly_spaced(length: int, limit: int | None) -> list[int]:
    """At most ``limit`` (None: all) ascending indices below ``length``, one of each equal part, at varying places:
    equal steps could meet a single one of RoadScenes' five cycling scenes."""
    if length == 0:
        raise ValueError("the split is empty: nothing to evaluate")
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}: give at least 1, or None for the whole split")
    count = min(length, limit or length)
    edges = [i * length // count for i in range(count + 1)]
    return [a + int((0.6 + 0.461 * i) % 1 * (b - a)) for i, (a, b) in enumerate(itertools.pairwise(edges))]
