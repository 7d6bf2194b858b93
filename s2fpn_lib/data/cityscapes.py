"""Cityscapes fine annotations: ``leftImg8bit/{split}/{city}`` beside ``gtFine/{split}/{city}``, 19 training ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from s2fpn_lib.data.dataset import DatasetError, DatasetNotFound, FileDataset, Sample, list_lines
from s2fpn_lib.data.protocols import CITYSCAPES_LABELS, PROTOCOLS

PROTOCOL = PROTOCOLS["cityscapes-fine-1024x2048"]
FOLDERS = ("cityscapes", "Cityscapes", "cityscape", ".")
_IMAGE_END = "_leftImg8bit.png"
# in order of preference where a tree holds several; labelIds is what every download contains
_LABEL_ENDS = {
    "labelIds": "_gtFine_labelIds.png",
    "labelTrainIds": "_gtFine_labelTrainIds.png",
    "color": "_gtFine_color.png",
}

HELP = (
    "Cityscapes needs a (free) account: log in at https://www.cityscapes-dataset.com/downloads/, fetch "
    "leftImg8bit_trainvaltest.zip (11 GB) and gtFine_trainvaltest.zip (241 MB), and unpack both into data/cityscapes "
    "so that data/cityscapes/leftImg8bit/train/aachen/ and data/cityscapes/gtFine/train/aachen/ exist, or point "
    "S2FPN_DATA at the folder that holds cityscapes/. See data/README.md."
)


def find_cityscapes(base: Path) -> Path | None:
    """The folder in ``base``, or ``base``, that holds ``leftImg8bit/`` and ``gtFine/``; None when there is none."""
    candidates = (base / folder for folder in FOLDERS)
    return next((c for c in candidates if (c / "leftImg8bit").is_dir() and (c / "gtFine").is_dir()), None)


def open_cityscapes(folder: Path, split: str, labels: str | None = None) -> FileDataset:
    """One of the splits in ``folder``, labels as training ids 0..18 and 255.

    A list file (``{split}.txt`` or ``cityscapes_{split}_list.txt``, with ``image label`` or only ``image`` a line,
    relative to ``folder``) decides which pairs belong to the split; without one, every image of the tree does.

    Args:
        labels: ``labelIds``, ``labelTrainIds`` or ``color``; None takes the first of them that the tree holds.

    Raises:
        DatasetNotFound: no image or no label of the split is there.
    """
    root = folder / "leftImg8bit" / split
    listing = next((p for p in (folder / f"cityscapes_{split}_list.txt", folder / f"{split}.txt") if p.is_file()), None)
    entries = _read_list(listing, folder) if listing else [(p, None) for p in sorted(root.glob(f"*/*{_IMAGE_END}"))]
    if not entries:
        raise DatasetNotFound(f"{listing or root}: the {split} split of Cityscapes has no image. {HELP}")
    kind = labels or _kind_of(entries, folder, split)
    if kind not in _LABEL_ENDS:
        raise ValueError(f"labels={labels!r}: choose one of {', '.join(_LABEL_ENDS)}")
    pairs = [(image, label or _label_of(image, folder, kind)) for image, label in entries]
    samples = [Sample(image.name.removesuffix(_IMAGE_END), image, label, image.parent.name) for image, label in pairs]
    paired = {label for _, label in pairs}
    tree = sorted((folder / "gtFine" / split).glob(f"*/*{_LABEL_ENDS[kind]}")) if not listing else []
    problems = [f"{path}: label without an image in {root}/" for path in tree if path not in paired]
    return FileDataset(
        "cityscapes",
        PROTOCOL,
        split,
        samples,
        decode_label=_DECODERS[kind],
        decoder=f"cityscapes-{kind}-1",
        problems=problems,
    )


def _read_list(listing: Path, folder: Path) -> list[tuple[Path, Path | None]]:
    entries = []
    for number, line in list_lines(listing):
        words = line.replace(",", " ").split()
        if len(words) > 2 or not words[0].endswith(".png"):
            raise DatasetError(f"{listing}, line {number}: expected `image label`, found {line.strip()[:80]!r}")
        # whatever prefix the list was written with, the tree starts at leftImg8bit/ or gtFine/
        paths = [folder / word[max(word.find("leftImg8bit/"), word.find("gtFine/"), 0) :] for word in words]
        entries.append((paths[0], paths[1] if len(paths) == 2 else None))
    return entries


def _kind_of(entries: list[tuple[Path, Path | None]], folder: Path, split: str) -> str:
    """Which kind of label PNG there is: as named in the list, else the first kind that exists for the first image."""
    image, listed = entries[0]
    for kind, end in _LABEL_ENDS.items():
        if listed.name.endswith(end) if listed else _label_of(image, folder, kind).is_file():
            return kind
    if listed:
        raise DatasetError(f"{listed}: a label's name ends in one of {', '.join(_LABEL_ENDS.values())}")
    if any((folder / "gtFine" / split).glob("*/*.png")):
        return "labelIds"  # other labels exist: leave the missing one to the audit, which names it
    raise DatasetNotFound(f"{folder / 'gtFine' / split}: the {split} split of Cityscapes has no labels. {HELP}")


def _label_of(image: Path, folder: Path, kind: str) -> Path:
    stem = image.name.removesuffix(_IMAGE_END)
    return folder / "gtFine" / image.parent.parent.name / image.parent.name / f"{stem}{_LABEL_ENDS[kind]}"


_TRAIN_ID = np.full(256, 255, dtype=np.uint8)
_LABEL_ID = np.zeros(256, dtype=np.uint8)  # 0 = unlabeled, for 255 and whatever else is no class
for _row in CITYSCAPES_LABELS:
    _TRAIN_ID[_row.label_id] = _row.train_id
    if _row.train_id != 255:
        _LABEL_ID[_row.train_id] = _row.label_id


def to_train_ids(label_ids: np.ndarray) -> np.ndarray:
    """The 34 label ids -> the 19 training ids, 255 where the class is not scored. ValueError for an id above 33."""
    highest = int(label_ids.max(initial=0))
    if highest >= len(CITYSCAPES_LABELS):
        raise ValueError(f"holds the value {highest}, but label ids end at {len(CITYSCAPES_LABELS) - 1}")
    return _TRAIN_ID[label_ids]


def to_label_ids(train_ids: np.ndarray) -> np.ndarray:
    """Predicted training ids (any shape, uint8) -> the label ids that the evaluation server expects; 255 -> 0."""
    return _LABEL_ID[train_ids]


def _from_label_ids(pixels: np.ndarray) -> np.ndarray:
    return to_train_ids(_one_channel(pixels))


def _from_train_ids(pixels: np.ndarray) -> np.ndarray:
    return _one_channel(pixels)


def _one_channel(pixels: np.ndarray) -> np.ndarray:
    if pixels.ndim != 2 or pixels.dtype != np.uint8:
        raise ValueError(f"expected one 8-bit channel of ids, found shape {pixels.shape}, {pixels.dtype}")
    return pixels


def _from_color(pixels: np.ndarray) -> np.ndarray:
    """Colour PNG (H, W, 3 or 4) -> training ids. `car` and `license plate` share a colour, as do pole and polegroup."""
    if pixels.ndim != 3:
        raise ValueError(f"expected a colour picture, found shape {pixels.shape}")
    codes = pixels[..., :3].astype(np.uint32) @ np.array([65536, 256, 1], dtype=np.uint32)
    known, inverse = np.unique(codes, return_inverse=True)
    foreign = [code for code in known if int(code) not in _COLOR_TO_TRAIN_ID]
    if foreign:
        raise ValueError(f"holds {len(foreign)} colours that no Cityscapes class has, e.g. #{int(foreign[0]):06x}")
    table = np.array([_COLOR_TO_TRAIN_ID[int(code)] for code in known], dtype=np.uint8)
    return table[inverse].reshape(codes.shape)


# Where a scored and an unscored class share a colour, the scored one wins.
_COLOR_TO_TRAIN_ID = {
    (row.color[0] << 16) | (row.color[1] << 8) | row.color[2]: row.train_id
    for row in sorted(CITYSCAPES_LABELS, key=lambda row: -row.train_id)
}
_DECODERS = {"labelIds": _from_label_ids, "labelTrainIds": _from_train_ids, "color": _from_color}
