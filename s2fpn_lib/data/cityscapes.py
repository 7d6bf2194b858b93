"""Cityscapes fine annotations: ``leftImg8bit/{split}/{city}`` beside ``gtFine/{split}/{city}``, 19 training ids."""

from pathlib import Path

import numpy as np

from s2fpn_lib.data.dataset import DatasetNotFound, FileDataset, Sample, listed_files
from s2fpn_lib.data.images import read_ids, read_label
from s2fpn_lib.data.protocols import CITYSCAPES_CLASSES, PROTOCOLS

PROTOCOL = PROTOCOLS["cityscapes-fine-1024x2048"]
FOLDERS = ("cityscapes", "Cityscapes", "cityscape", ".")
_IMAGE_END = "_leftImg8bit.png"
# in order of preference where a tree holds several; every download contains labelIds
_LABEL_ENDS = ("_gtFine_labelIds.png", "_gtFine_labelTrainIds.png", "_gtFine_color.png")

HELP = (
    "Cityscapes needs a (free) account: log in at https://www.cityscapes-dataset.com/downloads/, fetch "
    "leftImg8bit_trainvaltest.zip (11 GB) and gtFine_trainvaltest.zip (241 MB), and unpack both into data/cityscapes "
    "so that data/cityscapes/leftImg8bit/train/aachen/ and data/cityscapes/gtFine/train/aachen/ exist, or point "
    "S2FPN_DATA at the folder that holds cityscapes/. See data/README.md."
)


def is_here(folder: Path) -> bool:
    """Whether the folder holds ``leftImg8bit/`` and ``gtFine/``."""
    return (folder / "leftImg8bit").is_dir() and (folder / "gtFine").is_dir()


def open_split(folder: Path, split: str) -> FileDataset:
    """One of the splits in ``folder``, with labels as training ids 0..18 and 255.

    A list file (``{split}.txt`` or ``cityscapes_{split}_list.txt``, with ``image label`` or only ``image`` on each
    line) decides which pairs belong to the split. Without one, every image of the tree does. The label of an image is
    its ``*_labelIds.png``, else its ``*_labelTrainIds.png``, else its ``*_color.png``.

    Raises:
        DatasetNotFound: the split has no image or no label.
        DatasetError: the list file cannot be read as image and label pairs.
    """
    images, labels = (folder / tree / split for tree in ("leftImg8bit", "gtFine"))
    # leftImg8bit/train/aachen/x.png: a listed path has four parts below the dataset's folder
    listed = listed_files(folder, "cityscapes", split, (folder, folder), depth=4)
    entries = [[path] for path in sorted(images.glob(f"*/*{_IMAGE_END}"))] if listed is None else listed
    if not entries:
        raise DatasetNotFound(f"{images}: the {split} split of Cityscapes has no image. {HELP}")
    label_files: list[Path] = []
    if listed is None:
        found = (sorted(labels.glob(f"*/*{end}")) for end in _LABEL_ENDS)
        label_files = next((files for files in found if files), [])
        if not label_files:
            raise DatasetNotFound(f"{labels}: the {split} split of Cityscapes has no labels. {HELP}")
    samples = []
    for image, *label in entries:
        name, city = image.name.removesuffix(_IMAGE_END), image.parent.name
        samples.append(Sample(name, image, label[0] if label else _label_of(name, labels / city), city))
    return FileDataset("cityscapes", PROTOCOL, split, samples, read_train_ids, label_files)


def _label_of(name: str, folder: Path) -> Path:
    paths = [folder / f"{name}{end}" for end in _LABEL_ENDS]
    return next((path for path in paths if path.is_file()), paths[0])


_SCORED_LABEL_IDS = np.array([label_id for _, label_id, _ in CITYSCAPES_CLASSES])
_TRAIN_IDS = np.full(34, PROTOCOL.ignore_id, dtype=np.uint8)
_TRAIN_IDS[_SCORED_LABEL_IDS] = np.arange(19)
_LABEL_IDS = np.zeros(256, dtype=np.uint8)  # 0 is "unlabeled", for 255 and every other id that is no class
_LABEL_IDS[:19] = _SCORED_LABEL_IDS
# RGB of the unscored labels; polegroup is absent, as it shares the color of the scored class pole
_UNSCORED = (0x000000, 0x6F4A00, 0x510051, 0xFAAAA0, 0xE6968C, 0xB4A5B4, 0x966464, 0x96785A, 0x00005A, 0x00006E)
_TRAIN_ID_OF_COLOR = dict.fromkeys(_UNSCORED, PROTOCOL.ignore_id) | {
    red << 16 | green << 8 | blue: train_id for train_id, (red, green, blue) in enumerate(PROTOCOL.palette)
}


def to_label_ids(train_ids: np.ndarray) -> np.ndarray:
    """Predicted training ids (any shape, uint8) -> the label ids that the evaluation server expects; 255 -> 0."""
    return _LABEL_IDS[train_ids]


def read_train_ids(path: Path) -> np.ndarray:
    """Training ids (H, W) uint8 of a label file of any of the three kinds, 255 where the class is not scored.

    Raises:
        ValueError: the file cannot be read, its name states no kind, or an id or a color belongs to no label.
    """
    if path.name.endswith("_labelTrainIds.png"):
        return read_ids(path)
    if path.name.endswith("_labelIds.png"):
        label_ids = read_ids(path)
        if label_ids.max() >= len(_TRAIN_IDS):
            raise ValueError(f"{path}: holds the id {label_ids.max()}, but label ids end at {len(_TRAIN_IDS) - 1}")
        return _TRAIN_IDS[label_ids]
    pixels = read_label(path)
    if pixels.ndim != 3 or not path.name.endswith("_color.png"):
        raise ValueError(f"{path}: expected *_labelIds.png or *_labelTrainIds.png with ids, or *_color.png in color")
    codes = pixels.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.uint32)  # (H, W, 3) -> (H, W)
    colors, inverse = np.unique(codes, return_inverse=True)
    unknown = [color for color in colors.tolist() if color not in _TRAIN_ID_OF_COLOR]
    if unknown:
        raise ValueError(f"{path}: {len(unknown)} of its colors belong to no Cityscapes label, e.g. #{unknown[0]:06x}")
    train_ids = np.array([_TRAIN_ID_OF_COLOR[color] for color in colors.tolist()], dtype=np.uint8)
    return train_ids[inverse].reshape(codes.shape)
