"""Evaluation protocols. A mIoU is meaningful only with its protocol: every dataset and every result row names one."""

import tomllib
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from s2fpn_lib.model import NORMALIZATIONS
from s2fpn_lib.validate import as_declared, did_you_mean


@dataclass(frozen=True)
class Protocol:
    """How a dataset is labeled and scored; colors are (R, G, B) in 0..255."""

    name: str  # in result rows, e.g. camvid-segnet-360x480
    dataset: str  # the name that `open_dataset` takes
    size: tuple[int, int]  # (height, width) in pixels at which predictions are scored
    classes: tuple[str, ...]  # names; the position is the training id
    palette: tuple[tuple[int, int, int], ...]  # one color per class, in the order of `classes`
    ignore_id: int  # the label value that no loss and no metric counts
    mean_published: tuple[float, float, float]  # what the published recipe subtracts; also the color of the padding
    source: str  # where images and labels come from, and their license
    ignore_color: tuple[int, int, int] = (0, 0, 0)  # of `ignore_id` in figures

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


def _read(path: Path) -> dict[str, Protocol]:
    protocols, known = {}, {"": {}}
    for name, given in tomllib.loads(path.read_text(encoding="utf-8")).items():
        known[name] = values = known[given.pop("base", "")] | given
        fields = {key: value for key, value in values.items() if key not in ("mean", "classes")}
        classes, mean = values["classes"], NORMALIZATIONS[values["mean"]][0]
        fields |= {"classes": list(classes), "palette": list(classes.values()), "mean_published": mean}
        protocols[name] = Protocol.from_dict({"name": name, **fields})
    return protocols


PROTOCOLS = _read(Path(__file__).with_name("protocols.toml"))
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
