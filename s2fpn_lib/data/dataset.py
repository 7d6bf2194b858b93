"""The form of every dataset: pairs of a uint8 image and a uint8 label under an evaluation protocol."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from s2fpn_lib.data.images import read_image
from s2fpn_lib.data.protocols import Protocol

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


class DatasetNotFound(FileNotFoundError):
    """The dataset was not found; the message says where it was searched for and how to get it."""


class DatasetError(ValueError):
    """Files of a dataset are broken; ``problems`` holds one line per file, each naming the file."""

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__("\n  ".join([message, *problems]))
        self.problems = tuple(problems)


class SegmentationDataset:
    """``dataset[i]`` is ``(image (3, H, W), label (H, W))``, both uint8 tensors on the CPU; the image is RGB.

    Attributes:
        name: ``camvid``, ``cityscapes``, or ``roadscenes``.
        protocol: classes, palette, ignored id, and evaluation size.
        split: the split as requested, including a choice of drives.
        names: one stable id per sample, e.g. ``0016E5_07959``.
        drives: one recording per sample (CamVid drive, Cityscapes city, RoadScenes scene family).
        problems: errors found while pairing files; `check_dataset` reports them.
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
        """``(image (H, W, 3), label (H, W))`` as uint8 arrays, read-only because they may share the cache's memory."""
        raise NotImplementedError

    def label_summary(self, index: int) -> tuple[tuple[int, int], np.ndarray]:
        """``((height, width), pixels of each label value (256,) int64)`` of one sample."""
        label = self.arrays(index)[1]
        return label.shape, np.bincount(label.reshape(-1), minlength=256)  # (H, W) -> (H * W,)

    def label_source(self, index: int) -> str:
        """The name of a label in error messages: its file where there is one."""
        return self.names[index]

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, label = self.arrays(index)
        # (H, W, 3) -> (3, H, W); a copy, which the caller may change
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
        samples: the pairs. A missing file is an error on access and in the audit, not here.
        read_label: returns the training ids (H, W) uint8 of a label file, or raises ValueError.
        label_files: all label files of the split; those that belong to no sample become ``problems``.
    """

    def __init__(
        self,
        name: str,
        protocol: Protocol,
        split: str,
        samples: Sequence[Sample],
        read_label: Callable[[Path], np.ndarray],
        label_files: Sequence[Path] = (),
    ) -> None:
        self.name, self.protocol, self.split, self.read_label = name, protocol, split, read_label
        self.samples = list(samples)
        self.names = [sample.name for sample in self.samples]
        self.drives = [sample.drive for sample in self.samples]
        unpaired = sorted(set(label_files) - {sample.label for sample in self.samples})
        repeated = [name for name, count in Counter(self.names).items() if count > 1]
        self.problems = (
            *(f"{path}: label without an image" for path in unpaired),
            *(f"{name}: the sample occurs more than once in the {split} split" for name in repeated),
        )

    def arrays(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        sample = self.samples[index]
        try:
            image, label = read_image(sample.image), self.read_label(sample.label)
        except ValueError as error:
            raise DatasetError(str(error)) from None
        if image.shape[:2] != label.shape:
            (h, w), (lh, lw) = image.shape[:2], label.shape
            raise DatasetError(f"{sample.label}: label is {lh}x{lw} but its image {sample.image.name} is {h}x{w}")
        return image, label

    def label_source(self, index: int) -> str:
        return str(self.samples[index].label)


class Subset(SegmentationDataset):
    """Chosen samples of one or several datasets under one protocol, in the given order."""

    def __init__(self, items: Sequence[tuple[SegmentationDataset, int]], split: str, like: SegmentationDataset) -> None:
        self.items = list(items)
        self.name, self.protocol, self.split = like.name, like.protocol, split
        parts = {id(dataset): dataset for dataset, _ in self.items}.values()
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


def listed_files(folder: Path, name: str, split: str, columns: Sequence[Path], depth: int) -> list[list[Path]] | None:
    """Image and label paths (or only the image's) per line of the list file of a split; None without a list file.

    The file is ``{name}_{split}_list.txt`` or ``{split}.txt``. Published lists carry the prefix of the machine that
    they were made on (``/SegNet/CamVid/train/x.png``), so only the last ``depth`` parts of a path count.

    Args:
        columns: the folders of images and of labels that are listed by their file name alone.

    Raises:
        DatasetError: the file is no text file, or a line holds neither one nor two image files.
    """
    listing = next((p for p in (folder / f"{name}_{split}_list.txt", folder / f"{split}.txt") if p.is_file()), None)
    if listing is None:
        return None
    try:
        lines = listing.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DatasetError(f"{listing}: not a text file ({error}); expected `image label` on each line") from None
    entries = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        # a prefix may contain spaces: only words that end like an image file count
        words = [word for word in line.replace(",", " ").split() if word.lower().endswith(IMAGE_SUFFIXES)]
        if len(words) not in (1, 2):
            raise DatasetError(f"{listing}, line {number}: expected `image label`, found {line.strip()[:80]!r}")
        paths = [word.replace("\\", "/").split("/")[-depth:] for word in words]
        bases = [column if len(parts) == 1 else folder for column, parts in zip(columns, paths, strict=False)]
        entries.append([base.joinpath(*parts) for base, parts in zip(bases, paths, strict=True)])
    return entries


def evenly_spaced(length: int, limit: int | None) -> list[int]:
    """At most ``limit`` indices below ``length``, evenly spaced, ascending; ``limit=None`` takes all."""
    if length == 0:
        raise ValueError("the split is empty: nothing to evaluate")
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}: give at least 1, or None for the whole split")
    count = min(length, limit or length)
    return [(2 * i + 1) * length // (2 * count) for i in range(count)]
