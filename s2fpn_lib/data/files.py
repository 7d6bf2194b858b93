"""Datasets of image and label files, and the reader of Cityscapes with fine annotations."""

import os
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from s2fpn_lib.data.dataset import DatasetError, DatasetNotFound, SegmentationDataset
from s2fpn_lib.data.images import ids_of_colors, read_colors, read_ids, read_image
from s2fpn_lib.data.protocols import PROTOCOLS

SPLITS = ("train", "val", "test")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


class Sample(NamedTuple):
    """An image file and its label file."""

    image: Path
    label: Path


def inside(root: Path, given: str | Path, where: str) -> Path:
    """The path `given` below the folder `root`, without `..`; DatasetError, which begins with `where`, if it leads out
    of that folder. Links in the folder are the user's own and may lead anywhere."""
    base, path = (Path(os.path.normpath(each.absolute())) for each in (root, root / given))
    if "\0" in str(given) or not path.is_relative_to(base):
        advice = "move the files there, or give as data_root a folder that holds all of them, and paths relative to it"
        raise DatasetError(f"{where}: {str(given)[:200]!r} is not a path inside {root}; {advice}")
    return root / path.relative_to(base)


def listed_lines(path: Path) -> Iterator[tuple[str, str]]:
    """The place and the text of each line of a list file that is neither empty nor a comment, with ``/`` in paths that
    were written on Windows. Raises DatasetError if it is no text file."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: not a text file ({error}); expected `image label` on each line") from None
    for number, line in enumerate(map(str.strip, lines), 1):
        if line and not line.startswith("#"):
            yield f"{path}, line {number}", line.replace("\\", "/")


class FileDataset(SegmentationDataset):
    """One split of the image and label files in a folder, decoded on every access; a subclass describes the layout.

    A list file, ``{name}_{split}_list.txt`` or ``{split}.txt`` with ``image label`` or only ``image`` on each line,
    decides which pairs belong to the split. Without one, every image in the split's folder does. A missing file is an
    error on access and in the audit, not here. Raises DatasetNotFound if the split has no images or no labels, and
    DatasetError if the list file cannot be read.

    FOLDERS, HELP: where the dataset usually is below the folder of all datasets, and how to get it. IMAGE_FOLDER,
    LABEL_FOLDER: of a split. IMAGE_FILES: pattern in its folder. LABEL_FILES: label file of an image, in order of
    preference; ``{name}`` is the image's name, ``{folder}`` the name of its folder, and ``{renamed}`` its name with
    ``test_`` as ``testannot_`` (and so on for each split).
    """

    RESIZED = False  # whether a subclass brings every image to the protocol's size; otherwise another size is an error
    samples: list[Sample]
    sources: tuple[Path, ...] = ()  # files besides the samples that decide what a label means, for the cache's key

    def __init__(self, folder: Path, split: str) -> None:
        self.split, self.root = split, folder
        image_folder, label_folder = self.split_folders(folder, split)
        images = image_files(image_folder, self.IMAGE_FILES)
        patterns = [path.format(folder="*", name="*", renamed="*") for path in self.LABEL_FILES]
        labels = next(filter(None, (image_files(label_folder, pattern) for pattern in patterns)), [])
        listed = self._listed(folder)
        pairs = [[image] for image in images] if listed is None else listed
        for kind, place, files in (("images", image_folder, images and pairs), ("labels", label_folder, labels)):
            if not files:
                raise DatasetNotFound(f"{place}: the {split} split of {self.name} has no {kind}. {self.HELP}")
        self.names = [image.stem.removesuffix("_leftImg8bit") for image, *_ in pairs]
        self.samples = []
        for name, (image, *label) in zip(self.names, pairs, strict=True):
            names = {"name": name, "folder": image.parent.name, "renamed": name.replace(split, f"{split}annot", 1)}
            paths = label or [label_folder / path.format(**names) for path in self.LABEL_FILES]
            self.samples.append(Sample(image, next(filter(Path.is_file, paths), paths[0])))
        self.drives = [name.split("_", 1)[0] for name in self.names]  # 0016E5_07959 -> 0016E5
        unpaired = sorted(set(labels) - {sample.label for sample in self.samples}) if listed is None else []
        repeated = [name for name, count in Counter(self.names).items() if count > 1]
        problems = [f"{path}: label without an image" for path in unpaired]
        problems += [f"{name}: the sample occurs more than once in the {split} split" for name in repeated]
        self.problems = tuple(problems)

    @classmethod
    def find(cls, base: Path) -> Path | None:
        """The first of the dataset's usual folders below ``base`` that has its layout."""
        return next(filter(cls.layout, (base / each for each in cls.FOLDERS)), None)

    @classmethod
    def layout(cls, folder: Path) -> Any:
        """A true value if the folder looks like this dataset."""
        return any(all(map(Path.is_dir, cls.split_folders(folder, split))) for split in SPLITS)

    @classmethod
    def split_folders(cls, folder: Path, split: str) -> tuple[Path, Path]:
        return folder / cls.IMAGE_FOLDER.format(split=split), folder / cls.LABEL_FOLDER.format(split=split)

    def read_label(self, path: Path) -> np.ndarray:
        """The training ids (H, W) uint8 of a label file; ValueError for a file that has none."""
        return read_ids(path)

    def _listed(self, folder: Path) -> list[list[Path]] | None:
        """Image and label paths (or only the image's) per line of the split's list file; None without a list file."""
        places = (folder / f"{self.name}_{self.split}_list.txt", folder / f"{self.split}.txt")
        listing = next(filter(Path.is_file, places), None)
        if listing is None:
            return None
        columns = self.split_folders(folder, self.split)  # of files that are listed by their name alone
        # published lists carry the prefix of the machine that they were made on (/SegNet/CamVid/train/x.png)
        depth = len(Path(self.IMAGE_FOLDER, self.IMAGE_FILES).parts)
        entries = []
        for place, line in listed_lines(listing):
            # a prefix may contain spaces: only words that end like an image file count
            words = [word for word in line.replace(",", " ").split() if word.lower().endswith(IMAGE_SUFFIXES)]
            if len(words) not in (1, 2):
                raise DatasetError(f"{place}: expected `image label`, found {line[:80]!r}")
            paths = [Path(*word.split("/")[-depth:]) for word in words]
            bases = [folder if path.parent.name else column for column, path in zip(columns, paths, strict=False)]
            found = [base / path for base, path in zip(bases, paths, strict=True)]
            entries.append([inside(folder, path.relative_to(folder), place) for path in found])
        return entries

    def arrays(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        sample = self.samples[index]
        try:
            image, label = read_image(sample.image), self.read_label(sample.label)
        except ValueError as error:
            raise DatasetError(str(error)) from None
        (h, w), (lh, lw), (ph, pw) = image.shape[:2], label.shape, self.protocol.size
        if (h, w) != (lh, lw):
            turned = ", turned by the orientation in its EXIF data" if (h, w) == (lw, lh) else ""
            raise DatasetError(
                f"{sample.label}: label is {lh}x{lw} but its image {sample.image.name} is {h}x{w}{turned}"
            )
        if (h, w) != (ph, pw) and not self.RESIZED:
            raise DatasetError(
                f"{sample.image}: image and label are {h}x{w}, but {self.protocol.name} is trained and scored at "
                f"{ph}x{pw}. Resize the image (bilinear) and its label (nearest neighbor) to {ph}x{pw}, or describe "
                "the files as a dataset of your own with another size (docs/own-data.md)"
            )
        return image, label

    def label_source(self, index: int) -> str:
        return str(self.samples[index].label)


def image_files(folder: Path, pattern: str) -> list[Path]:
    """The image files in a folder that match a pattern, sorted."""
    return sorted(path for path in folder.glob(pattern) if path.suffix.lower() in IMAGE_SUFFIXES)


_CITYSCAPES = PROTOCOLS["cityscapes-fine-1024x2048"]


@cache
def _labels() -> tuple[np.ndarray, dict[tuple[int, int, int], int]]:
    """The training id of each label id, and that of each color."""
    from torchvision import datasets  # here, because its import takes over a second

    known = datasets.Cityscapes.classes
    train_ids = np.array([label.train_id for label in known if label.id >= 0], dtype=np.uint8)
    # unscored labels first: where a scored class has the same color (pole and car), the class counts
    of_colors = {label.color: _CITYSCAPES.ignore_id for label in known}
    return train_ids, of_colors | {color: index for index, color in enumerate(_CITYSCAPES.palette)}


def to_label_ids(train_ids: np.ndarray) -> np.ndarray:
    """Predicted training ids (any shape, uint8) -> the label ids that the evaluation server expects; 255 -> 0."""
    label_ids = np.zeros(256, dtype=np.uint8)  # 0 is "unlabeled", for 255 and every other id that is no class
    label_ids[:19] = np.flatnonzero(_labels()[0] < 19)
    return label_ids[train_ids]


class Cityscapes(FileDataset):
    """One split, with labels as training ids 0..18 and 255; a drive is a city."""

    protocol = _CITYSCAPES
    FOLDERS = ("cityscapes", "Cityscapes", "cityscape", ".")
    IMAGE_FOLDER, IMAGE_FILES, LABEL_FOLDER = "leftImg8bit/{split}", "*/*_leftImg8bit.png", "gtFine/{split}"
    LABEL_FILES = tuple(f"{{folder}}/{{name}}_gtFine_{kind}.png" for kind in ("labelIds", "labelTrainIds", "color"))
    HELP = (
        "Cityscapes needs a (free) account: log in at https://www.cityscapes-dataset.com/downloads/, fetch "
        "leftImg8bit_trainvaltest.zip (11 GB) and gtFine_trainvaltest.zip (241 MB), and unpack both into "
        "data/cityscapes so that data/cityscapes/leftImg8bit/train/aachen/ and data/cityscapes/gtFine/train/aachen/ "
        "exist, or point S2FPN_DATA at the folder that holds cityscapes/. See data/README.md."
    )

    def read_label(self, path: Path) -> np.ndarray:
        """Training ids of a label file of any of the three kinds, 255 where the class is not scored."""
        if path.name.endswith("_labelTrainIds.png"):
            return read_ids(path)
        if path.name.endswith("_labelIds.png"):
            label_ids = read_ids(path)
            train_ids = _labels()[0]
            if label_ids.max() >= len(train_ids):
                raise ValueError(f"{path}: holds the id {label_ids.max()}, but label ids end at {len(train_ids) - 1}")
            return train_ids[label_ids]
        if not path.name.endswith("_color.png"):
            raise ValueError(f"{path}: expected ids in *_labelIds.png or *_labelTrainIds.png, or colors in *_color.png")
        return ids_of_colors(read_colors(path), _labels()[1], path, _CITYSCAPES.classes)
