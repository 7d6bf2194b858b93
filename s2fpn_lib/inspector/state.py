"""What the inspector looks at, all immutable: a model, a picture, what the model computes for it, the chosen pixel."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from s2fpn_lib.attention.recorder import AttentionRecorder, LevelCapture
from s2fpn_lib.attention.statistics import untrained_warning
from s2fpn_lib.checkpoint import load_model, released_names
from s2fpn_lib.data import Protocol, SegmentationDataset
from s2fpn_lib.data.images import ids_of_colors, read_image, read_label
from s2fpn_lib.evaluate import count_seen, seen_caveat
from s2fpn_lib.metrics import class_ids
from s2fpn_lib.model import S2FPN
from s2fpn_lib.model.tta import at_size, evaluation_mode
from s2fpn_lib.report.tables import protocol_name
from s2fpn_lib.workbench.predict import network_size
from s2fpn_lib.workbench.provenance import checkpoint_provenance

LABEL_VIEWS = ("true classes", "errors")  # need a label
PAIR_VIEWS = ("disagreement", "total variation")  # need a second model
VIEWS = ("prediction", *LABEL_VIEWS, "confidence", "entropy", "margin", "class probability", *PAIR_VIEWS, "image")
OTHER = "other model"  # as `State.before`: the same view of the other model
Size = str | Sequence[int]  # size of the network's input: "protocol", "own", or (height, width); see `network_size`
MAX_WIDTH = 640  # pixels; a wider image is drawn with a stride


class Upload(io.BytesIO):
    """An uploaded file, read like a file; error messages show its name."""

    def __init__(self, name: str, content: bytes) -> None:
        super().__init__(content)
        self.name = name

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, eq=False)
class NamedModel:
    """A network with its name and provenance (see `checkpoint_provenance`)."""

    name: str
    network: S2FPN
    provenance: dict[str, Any] = field(default_factory=dict)
    path: str = ""  # what it was loaded from, as `load_model` takes it

    @classmethod
    def load(cls, path_or_name: str | Path, **options: Any) -> Self:
        """What `load_model` loads with the options, named by its released name or the last three folders."""
        network = load_model(path_or_name, **options)
        path = Path(path_or_name).expanduser().resolve()
        place = "/".join(path.parts[-4:] if path.is_file() else path.parts[-3:]).removesuffix(".safetensors")
        name = path_or_name if path_or_name in released_names() else place
        return cls(name, network, checkpoint_provenance(path_or_name, network.config), str(path_or_name))


@dataclass(frozen=True, eq=False)
class Picture:
    """An image as the network sees it."""

    name: str  # of the file or sample
    image: Tensor  # (3, H, W) uint8
    own_size: tuple[int, int]  # (height, width) before scaling
    label: Tensor | None = None  # (H, W) uint8 true ids
    sample: tuple[SegmentationDataset, int] | None = None  # the dataset that the image is from, and its index there

    @classmethod
    def scaled(cls, name: str, image: Tensor, size: Size, protocol: Protocol) -> Self:
        """The picture of a (3, H, W) uint8 image."""
        own = tuple(image.shape[-2:])
        return cls(name, at_size(image, network_size(own, size, protocol)), own)

    @classmethod
    def of_dataset(cls, dataset: SegmentationDataset, index: int, size: Size, protocol: Protocol) -> Self:
        """An image of the dataset, with its label if the classes are the protocol's; IndexError for a wrong index."""
        if not 0 <= index < len(dataset):
            split = f"{protocol_name(dataset.name)} {dataset.split}"
            raise IndexError(f"{split} has the images 0 to {len(dataset) - 1}, not {index}")
        image, label = dataset[index]
        picture = replace(cls.scaled(dataset.names[index], image, size, protocol), sample=(dataset, index))
        return picture.labeled(label) if dataset.protocol.classes == protocol.classes else picture

    @classmethod
    def of_file(cls, source: str | Path | Upload, size: Size, protocol: Protocol) -> Self:
        """An image file or upload; ImageError for a file that cannot be read."""
        pixels = torch.from_numpy(read_image(_expanded(source))).permute(2, 0, 1)  # (H, W, 3) -> (3, H, W)
        return cls.scaled(Path(str(source)).name, pixels, size, protocol)

    def labeled(self, ids: Tensor) -> Self:
        """The picture with a label of its own size, scaled like the image; ValueError for another size."""
        if (size := tuple(ids.shape)) != self.own_size:
            sizes = f"the label is {size} and the picture {self.own_size} (height, width)"
            raise ValueError(f"{sizes}: give the label of this picture")
        resized = F.interpolate(ids[None, None].float(), size=self.image.shape[-2:], mode="nearest-exact")[0, 0]
        return replace(self, label=resized.to(torch.uint8))


@dataclass(frozen=True, eq=False)
class Inspection:
    """One picture seen by one model. All tensors are on the CPU."""

    model: NamedModel
    picture: Picture
    protocol: Protocol
    probabilities: Tensor  # (K, H, W) float32, the softmax of the logits
    ids: Tensor  # (H, W) uint8, the predicted class ids
    levels: list[LevelCapture]  # apf1 to apf4
    revision: str  # "v1" or "v2"
    warning: str  # for an untrained model, whose maps mean nothing, and for an image that the model was trained on
    seen: bool = False  # whether the model was trained on the image

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the image."""
        return tuple(self.picture.image.shape[-2:])

    @property
    def stride(self) -> int:
        """Stride with which the image is drawn, at most `MAX_WIDTH` pixels wide."""
        return -(-self.size[1] // MAX_WIDTH)

    def drawn(self, maps: Tensor) -> Tensor:
        """(..., H, W) -> (..., h, w), the pixels that are drawn."""
        return maps[..., :: self.stride, :: self.stride]

    def on_level(self, level: LevelCapture, y: int, x: int) -> tuple[int, int]:
        """(y, x) on the level of the image's pixel (y, x)."""
        return y * level.size[0] // self.size[0], x * level.size[1] // self.size[1]


@dataclass(frozen=True)
class State:
    """What is shown of an inspection; (y, x) is the chosen pixel of the image."""

    y: int = 0
    x: int = 0
    view: str = "prediction"  # one of `VIEWS`
    opacity: float = 0.55  # of the view's colors over the image, 0 to 1
    hidden: frozenset[int] = frozenset()  # class ids whose color is not drawn
    pins: tuple[tuple[int, int], ...] = ()  # (y, x) of the pinned pixels, in the order of pinning
    shown_class: int = 0  # id of the class in the view "class probability"
    threshold: float = 0.0  # that view draws the pixels with at least this probability
    before: str = ""  # what is left of the wipe's divider: one of `VIEWS` or `OTHER`; empty: no wipe
    wipe: float = 0.5  # place of the divider, 0 (left edge) to 1

    def __post_init__(self) -> None:
        for name, allowed in (("view", VIEWS), ("before", ("", *VIEWS, OTHER))):
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(f"{name} is {value!r}; choose one of {', '.join(filter(None, allowed))}")
        for name in ("opacity", "threshold", "wipe"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; choose a number between 0 and 1")

    @classmethod
    def of_plain(cls, values: Mapping[str, Any]) -> Self:
        """The state of what `plain` returned."""
        return cls(**{**values, "hidden": frozenset(values["hidden"]), "pins": tuple(map(tuple, values["pins"]))})

    def plain(self) -> dict[str, Any]:
        """The state as JSON holds it."""
        return {**asdict(self), "hidden": sorted(self.hidden), "pins": list(map(list, self.pins))}

    def at(self, y: int, x: int, size: tuple[int, int], stride: int = 1) -> Self:
        """The state with another pixel, clamped to an image of `size` (H, W), of which each stride-th is drawn."""
        y, x = (min(max(int(place), 0), side - 1) // stride * stride for place, side in zip((y, x), size, strict=True))
        return replace(self, y=y, x=x)

    def fitting(self, inspections: Sequence[Inspection]) -> Self:
        """The state with views that can be drawn of these inspections in place of others."""
        views = available_views(inspections)
        view = self.view if self.view in views else "prediction"
        return replace(self, view=view, before=self.before if self.before in (*views, OTHER) else "")


def available_views(inspections: Sequence[Inspection]) -> list[str]:
    """The views that can be drawn of an image, with or without a label, and of one or two models."""
    missing = LABEL_VIEWS * (inspections[0].picture.label is None) + PAIR_VIEWS * (len(inspections) < 2)
    return [view for view in VIEWS if view not in missing]


def label_ids(source: str | Path | Upload, protocol: Protocol) -> Tensor:
    """(H, W) uint8 ids of a label PNG of train ids or the protocol's colors; 255 and other colors are ignored.

    Raises ImageError for a file that cannot be read or has damaged class colors, and ValueError for other ids.
    """
    pixels = read_label(_expanded(source))
    if pixels.ndim == 3:
        colors = dict(zip(protocol.palette, range(protocol.num_classes), strict=True))
        ids = ids_of_colors(pixels, colors, str(source), protocol.classes, unknown=protocol.ignore_id)
        if (ids == protocol.ignore_id).all():
            raise ValueError(f"{source}: none of its colors is a color of {protocol.name}; give a PNG of train ids")
        return torch.from_numpy(ids)
    ids = np.where(pixels == 255, protocol.ignore_id, pixels).astype(np.uint8)
    if unknown := np.setdiff1d(ids, protocol.label_ids).tolist():
        allowed = f"0 to {protocol.num_classes - 1}, and {protocol.ignore_id} or 255 for unlabeled pixels"
        raise ValueError(f"{source}: holds the ids {unknown[:5]}, but the train ids of {protocol.name} are {allowed}")
    return torch.from_numpy(ids)


def inspect(model: NamedModel, picture: Picture, protocol: Protocol) -> Inspection:
    """Runs the model once on the picture and returns what the inspector shows.

    Raises ValueError for a model of another number of classes, and TypeError for an optimized or exported model.
    """
    network = model.network
    with torch.inference_mode(), evaluation_mode(network), AttentionRecorder(network) as recorder:
        network(network.preprocess(picture.image[None]))
    capture = recorder.capture
    if (classes := capture.logits.shape[1]) != protocol.num_classes:
        numbers = f"{model.name} predicts {classes} classes, but {protocol.name} has {protocol.num_classes}"
        raise ValueError(f"{numbers}: give a model that was trained on it")
    seen = count_seen(network, picture.sample[0], [picture.sample[1]]) if picture.sample else 0
    p, ids = capture.logits[0].softmax(0).cpu(), class_ids(capture.logits)[0].to("cpu", torch.uint8)
    levels = [level.of_image(0) for level in capture.levels]
    random = "This network is untrained: its weights are random" * (model.provenance.get("checkpoint") == "untrained")
    warning = untrained_warning(network) or random or seen_caveat(seen, 1)
    return Inspection(model, picture, protocol, p, ids, levels, capture.revision, warning, bool(seen))


def _expanded(source: str | Path | Upload) -> Path | Upload:
    return source if isinstance(source, Upload) else Path(source).expanduser()
