"""What every dataset of the workbench looks like: uint8 image and label pairs under a protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from s2fpn_lib.data.protocols import Protocol


class DatasetNotFound(FileNotFoundError):
    """The dataset is not where it was looked for; the message says where that was and what to do."""


class DatasetError(ValueError):
    """Files of a dataset are broken; ``problems`` holds one line a file, each naming the file."""

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__("\n  ".join([message, *problems]))
        self.problems = tuple(problems)


class SegmentationDataset:
    """``dataset[i]`` is ``(image (3, H, W), label (H, W))``, both uint8 tensors on the CPU, the image RGB.

    Attributes:
        name: ``camvid``, ``cityscapes`` or ``roadscenes``.
        protocol: classes, palette, ignored id, evaluation size.
        split: the split as asked for, filters included.
        names: one stable id a sample, e.g. ``0016E5_07959``.
        drives: one recording a sample (CamVid drive, Cityscapes city, RoadScenes scene family).
        problems: what was already found wrong while pairing files; the audit repeats it.
    """

    name: str
    protocol: Protocol
    split: str
    names: list[str]
    drives: list[str]
    problems: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def arrays(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """``(image (H, W, 3), label (H, W))`` as uint8 arrays that may share memory with the dataset: read only."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, label = self.arrays(index)
        # (H, W, 3) -> (3, H, W); copied, so that a caller may write into what it gets
        planes = np.array(image.transpose(2, 0, 1), order="C")
        return torch.from_numpy(planes), torch.from_numpy(np.array(label))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name}, split={self.split!r}, {len(self)} samples)"


@dataclass(frozen=True)
class Sample:
    """One image file and its label file."""

    name: str
    image: Path
    label: Path
    drive: str


class FileDataset(SegmentationDataset):
    """Image and label files, decoded on every access.

    Args:
        samples: the pairs; a file that does not exist is an error on access and in the audit, not here.
        decode_label: pixel array of the label file, (H, W) or (H, W, 3) -> training ids (H, W) uint8, or ValueError.
        decoder: names ``decode_label`` and its version; part of the cache key.
    """

    def __init__(
        self,
        name: str,
        protocol: Protocol,
        split: str,
        samples: Sequence[Sample],
        *,
        decode_label: Callable[[np.ndarray], np.ndarray],
        decoder: str,
        problems: Sequence[str] = (),
    ) -> None:
        self.name, self.protocol, self.split = name, protocol, split
        self.samples = list(samples)
        self.names = [sample.name for sample in self.samples]
        self.drives = [sample.drive for sample in self.samples]
        self.decode_label, self.decoder = decode_label, decoder
        self.problems = tuple(problems)

    def arrays(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        sample = self.samples[index]
        image = _decode(sample.image, "RGB")
        pixels = _decode(sample.label, None)
        try:
            label = self.decode_label(pixels)
        except ValueError as error:
            raise DatasetError(f"{sample.label}: {error}") from None
        if image.shape[:2] != label.shape:
            (h, w), (lh, lw) = image.shape[:2], label.shape
            raise DatasetError(f"{sample.label}: label is {lh}x{lw} but its image {sample.image.name} is {h}x{w}")
        return image, label


def list_lines(listing: Path) -> list[tuple[int, str]]:
    """(number, text) of a list file's lines, empty ones and comments left out; DatasetError where it is no text."""
    try:
        lines = listing.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DatasetError(f"{listing}: no text file ({error}); expected `image label` a line") from None
    return [
        (number, line) for number, line in enumerate(lines, 1) if line.strip() and not line.lstrip().startswith("#")
    ]


def _decode(path: Path, mode: str | None) -> np.ndarray:
    """Pixels of one file; palette images give their indices, ``DatasetError`` names a file that cannot be read."""
    try:
        with Image.open(path) as picture:
            # a copy: torch warns of arrays that cannot be written
            return np.array(picture.convert(mode) if mode and picture.mode != mode else picture)
    except FileNotFoundError:
        raise DatasetError(f"{path}: file is missing") from None
    except (OSError, SyntaxError, ValueError) as error:  # PIL's errors for truncated or foreign files
        raise DatasetError(f"{path}: cannot be decoded ({error})") from None


class Subset(SegmentationDataset):
    """Chosen samples of one or several datasets under one protocol, in the given order."""

    def __init__(self, items: Sequence[tuple[SegmentationDataset, int]], split: str, like: SegmentationDataset) -> None:
        self.items = list(items)
        self.name, self.protocol, self.split = like.name, like.protocol, split
        self.problems = tuple(problem for part in self.parts for problem in part.problems)
        self.names = [dataset.names[index] for dataset, index in self.items]
        self.drives = [dataset.drives[index] for dataset, index in self.items]

    @property
    def parts(self) -> list[SegmentationDataset]:
        """The datasets that samples come from."""
        return list({id(dataset): dataset for dataset, _ in self.items}.values())

    def arrays(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        dataset, inner = self.items[index]
        return read_arrays(dataset, inner)


def read_arrays(dataset: SegmentationDataset, index: int) -> tuple[np.ndarray, np.ndarray]:
    """``dataset.arrays(index)``, also for a dataset that only has ``[index]``."""
    if hasattr(dataset, "arrays"):
        return dataset.arrays(index)
    image, label = dataset[index]
    return image.permute(1, 2, 0).numpy(), label.numpy()  # (3, H, W) -> (H, W, 3)


def evenly_spaced(length: int, limit: int | None) -> list[int]:
    """At most `limit` indices below `length`, evenly spread, ascending."""
    if length == 0:
        raise ValueError("the split is empty: nothing to evaluate")
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}: give at least 1, or None for the whole split")
    count = min(length, limit or length)
    return [(2 * i + 1) * length // (2 * count) for i in range(count)]
