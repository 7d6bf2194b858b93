"""What the attention inspector looks at: one image as one model saw it, and the pixel chosen in it.

    inspection = inspect(model, image, protocol, label=label)     # the only forward pass
    state = State(y=120, x=200).pinned()

Both are immutable: the methods of `State` return a new one.
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
MAX_WIDTH = 640  # pixels; a wider image is drawn with a stride


@dataclass(frozen=True, eq=False)
class Inspection:
    """One image seen by one model. All tensors are on the CPU.

    Attributes:
        image: (3, H, W) uint8.
        protocol: class names and colors.
        probabilities: (K, H, W) float32, the softmax of the logits.
        ids: (H, W) uint8, the predicted class ids.
        levels: apf1 to apf4.
        revision: "v1" or "v2".
        label: (H, W) uint8 true ids, or None.
        name, model_name: names of the image and of the model.
        provenance: provenance of the model, as `checkpoint_provenance` returns it.
        warning: a sentence for an untrained model, whose attention maps mean nothing; empty otherwise.
    """

    image: Tensor
    protocol: Protocol
    probabilities: Tensor
    ids: Tensor
    levels: list[LevelCapture]
    revision: str
    label: Tensor | None = None
    name: str = ""
    model_name: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)
    warning: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the image."""
        return tuple(self.image.shape[-2:])

    @property
    def stride(self) -> int:
        """Stride with which the image is drawn, so that the picture is at most `MAX_WIDTH` pixels wide."""
        return -(-self.size[1] // MAX_WIDTH)

    def on_level(self, level: LevelCapture, y: int, x: int) -> tuple[int, int]:
        """(y, x) on the level of the image's pixel (y, x)."""
        return y * level.size[0] // self.size[0], x * level.size[1] // self.size[1]


@dataclass(frozen=True)
class State:
    """What is shown of an inspection.

    Attributes:
        y, x: the chosen pixel of the image.
        view: one of `VIEWS`.
        opacity: opacity of the view's colors over the image, 0 to 1.
        hidden: class ids whose color is not drawn.
        pins: (y, x) of the pinned pixels, in the order of pinning.
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
            raise ValueError(
                f"opacity is {self.opacity}; it must be between 0 (only the image) and 1 (only the colors)"
            )

    def at(self, y: int, x: int, size: tuple[int, int]) -> State:
        """The state with another pixel, clamped to an image of `size` (H, W)."""
        return replace(self, y=min(max(int(y), 0), size[0] - 1), x=min(max(int(x), 0), size[1] - 1))

    def pinned(self) -> State:
        """The state with the chosen pixel pinned, or unpinned if it already was."""
        here = (self.y, self.x)
        pins = tuple(pin for pin in self.pins if pin != here)
        return replace(self, pins=pins if here in self.pins else (*pins, here))


def inspect(
    model: S2FPN,
    image: Tensor,
    protocol: Protocol,
    *,
    label: Tensor | None = None,
    name: str = "",
    model_name: str = "",
    provenance: dict[str, Any] | None = None,
) -> Inspection:
    """Runs `model` once on a (3, H, W) uint8 image, at its own size, and returns what the inspector shows.

    Raises ValueError if the (H, W) label has another size or the model another number of classes than the protocol, and
    TypeError for an optimized or exported model, whose parts cannot be recorded.
    """
    if label is not None and label.shape != image.shape[-2:]:
        raise ValueError(f"the label is {tuple(label.shape)} and the image {tuple(image.shape[-2:])}: sizes must match")
    device = next(model.parameters()).device
    with torch.inference_mode(), evaluation_mode(model), AttentionRecorder(model) as recorder:
        model(model.preprocess(image[None].to(device)))
    capture = recorder.capture
    if capture.logits.shape[1] != protocol.num_classes:
        raise ValueError(
            f"{model_name or 'the model'} predicts {capture.logits.shape[1]} classes, but {protocol.name} has "
            f"{protocol.num_classes}: give a model that was trained on it"
        )
    return Inspection(
        image=image.cpu(),
        protocol=protocol,
        probabilities=capture.logits[0].softmax(0).cpu(),
        ids=class_ids(capture.logits)[0].to("cpu", torch.uint8),
        levels=[_on_cpu(level) for level in capture.levels],
        revision=capture.revision,
        label=None if label is None else label.cpu(),
        name=name,
        model_name=model_name,
        provenance=provenance or {},
        warning=untrained_warning(model),
    )


def _on_cpu(level: LevelCapture) -> LevelCapture:
    return replace(level, **{name: value.cpu() for name, value in vars(level).items() if isinstance(value, Tensor)})
