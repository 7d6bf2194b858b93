"""What the attention inspector looks at: an image as one model saw it, and which pixel of it is chosen.

    inspection = inspect(model, image, protocol, label=label)     # the only forward pass
    state = State(y=120, x=200).toggled(3).pinned()

Both are values: the methods of `State` return another one.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from s2fpn_lib.attention.recorder import AttentionRecorder, LevelCapture
from s2fpn_lib.attention.statistics import untrained_warning
from s2fpn_lib.data import Protocol
from s2fpn_lib.metrics import class_ids
from s2fpn_lib.model import S2FPN
from s2fpn_lib.model.modes import evaluation_mode

VIEWS = ("prediction", "true classes", "errors", "confidence", "image")
MAX_WIDTH = 640  # pixels of the drawn picture; larger images are drawn with every s-th pixel


@dataclass(frozen=True, eq=False)
class Inspection:
    """One image seen by one model.

    Attributes:
        image: (3, H, W) uint8.
        protocol: class names and colours.
        ids: (H, W) uint8, the predicted class ids.
        confidence: (H, W) float32, the probability of the predicted class.
        probabilities: (K, H, W) float32.
        levels: apf1 to apf4, on the CPU.
        revision: "v1" or "v2".
        label: (H, W) uint8 true ids, None where nobody knows them.
        name: of the image.
        provenance: of the model, as `provenance.checkpoint_provenance` gives it.
        warning: that the maps mean nothing, for an untrained model; else empty.
    """

    image: Tensor
    protocol: Protocol
    ids: Tensor
    confidence: Tensor
    probabilities: Tensor
    levels: list[LevelCapture]
    revision: str
    label: Tensor | None = None
    name: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)
    warning: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the image."""
        return tuple(self.image.shape[-2:])

    @property
    def stride(self) -> int:
        """Every so-manieth pixel of the image is drawn."""
        return -(-self.size[1] // MAX_WIDTH)

    def on_level(self, level: LevelCapture, y: int, x: int) -> tuple[int, int]:
        """The level's pixel that lies over the image's pixel (y, x)."""
        places = zip((y, x), level.size, self.size, strict=True)
        return tuple(min(place * small // large, small - 1) for place, small, large in places)


@dataclass(frozen=True)
class State:
    """What is looked at.

    Attributes:
        y, x: the chosen pixel of the image.
        view: one of `VIEWS`.
        opacity: of the view's colours over the image, 0 to 1.
        hidden: class ids whose colour is not drawn.
        pins: (y, x) of pinned pixels, in the order of pinning.
    """

    y: int = 0
    x: int = 0
    view: str = "prediction"
    opacity: float = 0.55
    hidden: frozenset[int] = frozenset()
    pins: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if self.view not in VIEWS:
            raise ValueError(f"view is {self.view!r}; choose one of {', '.join(VIEWS)}")
        if not 0 <= self.opacity <= 1:
            raise ValueError(f"opacity is {self.opacity}; it lies between 0 (the image) and 1 (the colours)")

    def at(self, y: int, x: int, size: tuple[int, int]) -> State:
        """With another pixel, moved to the nearest one inside an image of `size`."""
        return replace(self, y=min(max(int(y), 0), size[0] - 1), x=min(max(int(x), 0), size[1] - 1))

    def toggled(self, class_id: int) -> State:
        """With one class shown that was hidden, or the other way round."""
        return replace(self, hidden=self.hidden ^ {class_id})

    def solo(self, class_id: int, num_classes: int) -> State:
        """With that class alone."""
        return replace(self, hidden=frozenset(range(num_classes)) - {class_id})

    def pinned(self) -> State:
        """With the chosen pixel pinned, or no longer, if it was."""
        here = (self.y, self.x)
        pins = tuple(pin for pin in self.pins if pin != here) if here in self.pins else (*self.pins, here)
        return replace(self, pins=pins)


def inspect(
    model: S2FPN,
    image: Tensor,
    protocol: Protocol,
    *,
    label: Tensor | None = None,
    name: str = "",
    provenance: dict[str, Any] | None = None,
) -> Inspection:
    """Runs `model` on one (3, H, W) uint8 image, at its own size, and keeps what the inspector shows.

    Raises ValueError for a label of another size and TypeError for a model without its parts (an optimized one).
    """
    if label is not None and label.shape != image.shape[-2:]:
        raise ValueError(f"the label is {tuple(label.shape)} and the image {tuple(image.shape[-2:])}")
    device = next(model.parameters()).device
    with torch.inference_mode(), evaluation_mode(model), AttentionRecorder(model) as recorder:
        model(model.preprocess(image[None].to(device)))
    logits = recorder.capture.logits
    probabilities = logits[0].softmax(0).cpu()
    levels = [replace(level, **_on_cpu(level)) for level in recorder.capture.levels]
    return Inspection(
        image=image.cpu(),
        protocol=protocol,
        ids=class_ids(logits)[0].to("cpu", torch.uint8),
        confidence=probabilities.max(0).values,
        probabilities=probabilities,
        levels=levels,
        revision=recorder.capture.revision,
        label=None if label is None else label.cpu(),
        name=name,
        provenance=provenance or {},
        warning=untrained_warning(model),
    )


def _on_cpu(level: LevelCapture) -> dict[str, Tensor]:
    return {name: value.cpu() for name, value in vars(level).items() if isinstance(value, Tensor)}
