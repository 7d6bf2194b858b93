"""Image and label files for the loader benchmark: CamVid if it is found, otherwise RoadScenes images as PNG files."""

import contextlib
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from s2fpn_lib.data import DatasetNotFound, get_protocol, open_dataset
from s2fpn_lib.data.files import Sample, to_label_ids
from s2fpn_lib.data.roadscenes.dataset import render_scene

PROTOCOLS = {"camvid": "camvid-segnet-360x480", "cityscapes": "cityscapes-fine-1024x2048"}
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

    "camvid": the images of the train split that `open_dataset` finds, otherwise drawn at 360x480. "cityscapes": drawn
    at 1024x2048, labels as gtFine's labelIds. If more images are requested than there are (or than `DRAWN`), they are
    repeated. All files are copies, because the benchmark overwrites one of them.

    Raises ValueError for another kind.
    """
    if kind not in LAYOUTS:
        raise ValueError(f"loader_data holds {kind!r}; choose from {', '.join(LAYOUTS)}")
    sources = []
    if kind == "camvid":
        with contextlib.suppress(DatasetNotFound):
            sources = open_dataset("camvid", None, "train", cache=False).samples
    if not sources:
        sources = [_draw(kind, seed, folder / "drawn") for seed in range(min(images, DRAWN))]
    for number in range(images):
        for source, layout in zip(sources[number % len(sources)], LAYOUTS[kind], strict=True):
            target = folder / layout.format(f"0000XX_{number:06d}")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    return folder


def _draw(kind: str, seed: int, folder: Path) -> Sample:
    sample = Sample(folder / f"{seed}.png", folder / f"{seed}_label.png")
    pixels, ids = render_scene(seed, get_protocol(PROTOCOLS[kind]).size)
    if kind == "cityscapes":  # RoadScenes' classes become the first eleven: the ids do not change the time
        ids = to_label_ids(np.where(ids < 11, ids, 255).astype(np.uint8))
    folder.mkdir(parents=True, exist_ok=True)
    for path, array in zip(sample, (pixels, ids), strict=True):
        Image.fromarray(array).save(path)
    return sample
