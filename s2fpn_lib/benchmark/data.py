"""Image and label files to measure a loader on: real CamVid where there is some, else drawn scenes as PNG files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from s2fpn_lib.data import DatasetNotFound, get_protocol, open_dataset
from s2fpn_lib.data.cityscapes import to_label_ids
from s2fpn_lib.data.roadscenes.dataset import render_scene

KINDS = {"camvid": "camvid-segnet-360x480", "cityscapes": "cityscapes-fine-1024x2048"}
DRAWN = 8  # different pictures at most: drawing one takes far longer than decoding it


def files_like(kind: str, folder: Path, images: int) -> Path:
    """Puts `images` pairs into `folder`, in the dataset's own layout; the root to open.

    "camvid": the first of the train split that `open_dataset` finds, else drawn at 360x480. "cityscapes": drawn at
    1024x2048, labels as gtFine's labelIds. More images than there are (or than `DRAWN`) repeat the first ones.

    Raises ValueError for another kind.
    """
    if kind not in KINDS:
        raise ValueError(f"loader_data holds {kind!r}; choose from {', '.join(KINDS)}")
    sources = _camvid_files(images) if kind == "camvid" else []
    for number in range(images):
        target = _places(kind, folder, f"0000XX_{number:06d}")
        for path in target:
            path.parent.mkdir(parents=True, exist_ok=True)
        if number < len(sources):
            _copy(sources[number], target)
        elif sources or number >= DRAWN:
            _copy(_places(kind, folder, f"0000XX_{number % (len(sources) or DRAWN):06d}"), target)
        else:
            _draw(kind, number, *target)
    return folder


def _copy(source: tuple[Path, Path], target: tuple[Path, Path]) -> None:
    """Copies, no links: a benchmark writes one of the files anew."""
    for old, new in zip(source, target, strict=True):
        new.write_bytes(old.read_bytes())


def _camvid_files(images: int) -> list[tuple[Path, Path]]:
    try:
        samples = open_dataset("camvid", None, "train", cache=False).samples[:images]
    except DatasetNotFound:
        return []
    return [(sample.image, sample.label) for sample in samples]


def _places(kind: str, folder: Path, name: str) -> tuple[Path, Path]:
    if kind == "camvid":
        return folder / "camvid" / "train" / f"{name}.png", folder / "camvid" / "trainannot" / f"{name}.png"
    image = folder / "cityscapes" / "leftImg8bit" / "train" / "drawn" / f"{name}_leftImg8bit.png"
    return image, folder / "cityscapes" / "gtFine" / "train" / "drawn" / f"{name}_gtFine_labelIds.png"


def _draw(kind: str, seed: int, image: Path, label: Path) -> None:
    pixels, ids = render_scene(seed, get_protocol(KINDS[kind]).size)
    Image.fromarray(pixels).save(image)
    # RoadScenes' classes stand for the first eleven of Cityscapes: which ids they are changes no time
    ids = to_label_ids(np.where(ids < 11, ids, 255).astype(np.uint8)) if kind == "cityscapes" else ids
    Image.fromarray(ids).save(label)
