"""Evaluation protocols. A mIoU is meaningful only with its protocol: every dataset and every result row names one."""

import math
import re
import tomllib
import typing
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from s2fpn_lib.model import NORMALIZATIONS
from s2fpn_lib.validate import as_declared, did_you_mean, unprintable

NAME = re.compile(r"[A-Za-z0-9_.+-]{1,150}")  # of a protocol or dataset: it is part of file names and pages
MOST_CHARACTERS = 100  # of a class's name
MOST_PIXELS = 100_000_000  # of the size at which predictions are scored


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
        names, classes = (self.name, self.dataset), self.classes
        values = (self.ignore_id, *self.ignore_color, *self.mean_published, *sum(self.palette, ()))
        odd = [each[:80] for each in classes if not 1 <= len(each) <= MOST_CHARACTERS or unprintable(each)]
        for right, message in (
            (all(map(NAME.fullmatch, names)), "name and dataset have up to 150 letters, digits, and _.+-"),
            (not 0 <= self.ignore_id < len(classes), f"ignore_id {self.ignore_id} is also the id of a class"),
            (not odd, f"class {odd}: give names of 1 to {MOST_CHARACTERS} characters, without control characters"),
            (1 <= len(classes) <= 253, f"{len(classes)} classes; give 1 to 253"),
            (len({*classes}) == len(classes) == len(self.palette), "classes have different names, and a color each"),
            (min(self.size) >= 1 and math.prod(self.size) <= MOST_PIXELS, f"size is not in 1 to {MOST_PIXELS} pixels"),
            (all(0 <= value <= 255 for value in values), "ids and colors run from 0 to 255"),
        ):
            if not right:
                raise ValueError(f"protocol {self.name[:80]!r}: {message}")

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
        """The protocol of `to_dict`; TypeError where a field is missing or of another type, ValueError for a value."""
        declared = typing.get_type_hints(cls)
        return cls(**{name: as_declared(value, declared.get(name, Any)) for name, value in dict(fields).items()})


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
_known = ChainMap(_own, PROTOCOLS)


def register(protocol: Protocol) -> Protocol:
    """Makes a protocol of the user's own dataset known to `get_protocol` in this process, and returns it. Raises
    ValueError if that name is known with other classes, ids, or another size."""
    known = _known.get(protocol.name, protocol)
    for field in ("dataset", "size", "classes", "ignore_id"):
        if getattr(known, field) != getattr(protocol, field):
            differ = f"{field} {getattr(protocol, field)} instead of {getattr(known, field)}"
            raise ValueError(f"the protocol {protocol.name} is known with other values ({differ[:300]})")
    if protocol.name not in PROTOCOLS:
        _own[protocol.name] = protocol
    return protocol


def dataset_of(name: str) -> str:
    """The dataset of a protocol, also of an own one that is not registered: its name begins with the dataset's."""
    return _known[name].dataset if name in _known else name.rsplit("-", 2)[0]


def get_protocol(name: str) -> Protocol:
    """The protocol with that name; KeyError with the nearest known name if there is none."""
    if name not in _known:
        raise KeyError(f"no protocol named {name!r}.{did_you_mean(name, _known)} Known: {', '.join(_known)}")
    return _known[name]
