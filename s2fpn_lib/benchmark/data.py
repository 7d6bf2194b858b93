"""Image and label files for the loader benchmark: CamVid if it is found, otherwise RoadScenes images as PNG files."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from s2fpn_lib.data import DatasetNotFound, get_protocol, open_dataset
from s2fpn_lib.data.files import to_label_ids
from s2fpn_lib.data.roadscenes.dataset import render_scene

KINDS = {"camvid": "camvid-segnet-360x480", "cityscapes": "cityscapes-fine-1024x2048"}
LAYOUTS = {
    "camvid": ("camvid/train/{}.png", "camvid/trainannot/{}.png"),
    "cityscapes": (
        "cityscapes/leftImg8bit/train/drawn/{}_leftImg8bit.png",
        "cityscapes/gtFine/train/drawn/{}_gtFine_labelIds.png",
    ),
}
DRAWN = 8  # different images at most: drawing takes much longer than decoding


def files_like(kind: str, folder: Path, images: int) -> Path:
    """Writes `images` pairs of image and label into `folder`, in the dataset's layout; returns the root to open.

    "camvid": the first images of the train split that `open_dataset` finds, otherwise drawn at 360x480. "cityscapes":
    drawn at 1024x2048, labels as gtFine's labelIds. If more images are requested than there are (or than `DRAWN`), the
    first ones are repeated.

    Raises ValueError for another kind.
    """
    if kind not in KINDS:
        raise ValueError(f"loader_data holds {kind!r}; choose from {', '.join(KINDS)}")
    sources = _camvid_files(images) if kind == "camvid" else []
    written: list[tuple[Path, Path]] = []
    for number in range(images):
        target = tuple(folder / path.format(f"0000XX_{number:06d}") for path in LAYOUTS[kind])
        for path in target:
            path.parent.mkdir(parents=True, exist_ok=True)
        if not sources and number < DRAWN:
            _draw(kind, number, *target)
        else:  # copies, not links: the benchmark overwrites one of the files
            source = sources[number] if number < len(sources) else written[number % (len(sources) or DRAWN)]
            for old, new in zip(source, target, strict=True):
                shutil.copyfile(old, new)
        written.append(target)
    return folder


def _camvid_files(images: int) -> list[tuple[Path, Path]]:
    try:
        samples = open_dataset("camvid", None, "train", cache=False).samples[:images]
    except DatasetNotFound:
        return []
    return [(sample.image, sample.label) for sample in samples]


def _draw(kind: str, seed: int, image: Path, label: Path) -> None:
    pixels, ids = render_scene(seed, get_protocol(KINDS[kind]).size)
    Image.fromarray(pixels).save(image)
    # RoadScenes' classes become the first eleven of Cityscapes: the ids do not change the time
    ids = to_label_ids(np.where(ids < 11, ids, 255).astype(np.uint8)) if kind == "cityscapes" else ids
    Image.fromarray(ids).save(label)
