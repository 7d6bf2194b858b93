"""The attention inspector without its widget: what one forward pass found, what is looked at, and the pictures of it.

    inspection = inspect(model, image, protocol, label=label)     # the only forward pass
    state = State(y=120, x=200)
    render(state, inspection), render_level(state, inspection, 3), readout(state, inspection)

All three only index what `inspect` has kept; `State` is a value, and its methods return another one.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from s2fpn_lib.attention import AttentionRecorder, LevelCapture
from s2fpn_lib.attention_statistics import untrained_warning
from s2fpn_lib.data import Protocol
from s2fpn_lib.inference import evaluation_mode
from s2fpn_lib.model import S2FPN
from s2fpn_lib.pictures import as_picture, colourise

VIEWS = ("prediction", "true classes", "errors", "confidence", "image")
LEVELS = ("apf1", "apf2", "apf3", "apf4")
MAX_WIDTH = 640  # pixels of the drawn picture; larger images are drawn with every s-th pixel
PROFILE_HEIGHT = 56  # pixels under the picture of a level
CROSSHAIR, PIN = (255, 255, 255), (255, 221, 0)
FIRST, SECOND = (0, 114, 178), (213, 94, 0)  # of two gates; the house's blue and vermilion
WRONG, RIGHT = (213, 94, 0), (205, 211, 217)


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


@dataclass(frozen=True)
class LevelReadout:
    """One level at the chosen pixel, in numbers.

    Attributes:
        name: apf1 to apf4.
        size: (h, w) of the level.
        pixel: (y, x) on the level.
        gamma: None with SSAM off.
        share: of the blend that the strips make up; None with SSAM off.
        gates: the two gates at the pixel, empty with SSAM off.
        top: v2, up to three (first, last, weight): image columns (rows with strip_axis="width") of the strip entries
            that the pixel attends to most. v1: those whose two gates differ most, with the difference.
        decides: class that the auxiliary head predicts here; empty without one.
    """

    name: str
    size: tuple[int, int]
    pixel: tuple[int, int]
    gamma: float | None
    share: float | None
    gates: tuple[float, ...]
    top: tuple[tuple[int, int, float], ...]
    decides: str


@dataclass(frozen=True)
class Readout:
    """The chosen pixel in numbers: what the pictures show, for reading, saving and screen readers."""

    y: int
    x: int
    prediction: str
    confidence: float
    others: tuple[tuple[str, float], ...]
    truth: str
    levels: tuple[LevelReadout, ...]

    def sentence(self) -> str:
        """One sentence for a screen reader."""
        truth = f", true class {self.truth}" if self.truth else ""
        return f"Row {self.y}, column {self.x}: {self.prediction}, {self.confidence:.0%} sure{truth}."


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
    probabilities = recorder.capture.logits[0].float().softmax(0).cpu()
    confidence, ids = probabilities.max(0)
    levels = [replace(level, **_on_cpu(level)) for level in recorder.capture.levels]
    return Inspection(
        image=image.cpu(),
        protocol=protocol,
        ids=ids.to(torch.uint8),
        confidence=confidence,
        probabilities=probabilities,
        levels=levels,
        label=None if label is None else label.cpu(),
        name=name,
        provenance=provenance or {},
        warning=untrained_warning(model),
    )


def render(state: State, inspection: Inspection) -> np.ndarray:
    """The image with the view's colours, the chosen pixel and the pins: (h, w, 3) uint8."""
    s = inspection.stride
    picture = as_picture(inspection.image[:, ::s, ::s]).astype(np.float32)
    colours, drawn = _layer(state, inspection)
    alpha = (state.opacity * drawn)[..., None]
    picture = ((1 - alpha) * picture + alpha * colours).astype(np.uint8)
    for y, x in state.pins:
        _cross(picture, y // s, x // s, PIN, arm=6)
    _cross(picture, state.y // s, state.x // s, CROSSHAIR, arm=11)
    return picture


def render_level(state: State, inspection: Inspection, index: int) -> np.ndarray:
    """What level `index` (0 is apf1) does at the chosen pixel: (h + PROFILE_HEIGHT, w, 3) uint8.

    v2: the image, lit where the pixel's distribution over columns is, and that distribution as a profile below. v1: the
    image tinted by the gate that is larger in a column, blue for the average strip's and vermilion for the maximum's;
    below, both gates. The scale of a profile is its own largest value. Without SSAM: the image in grey.
    """
    s = inspection.stride
    level = inspection.levels[index]
    image = as_picture(inspection.image[:, ::s, ::s]).astype(np.float32)
    height, width = image.shape[:2]
    grey = np.repeat(image.mean(-1, keepdims=True), 3, -1)
    profile = np.full((PROFILE_HEIGHT, width, 3), 255, np.uint8)
    if level.gates is None:
        return np.concatenate([(128 + 0.5 * grey).astype(np.uint8), profile])
    along_rows = level.strip_axis == "width"
    length = height if along_rows else width
    if level.query is not None:
        p = level.column_attention(*_on_level(state, inspection, level))[0].numpy()
        weight = _stretched(p / max(p.max(), 1e-12), length)
        lit = (weight[:, None] if along_rows else weight[None, :])[..., None]
        picture = 0.35 * grey * (1 - lit) + image * lit
        _bars(profile, _stretched(p / max(p.max(), 1e-12), width), FIRST)
    else:
        gates = level.gates[0].numpy()  # (2, L)
        difference = gates[0] - gates[1]
        difference = _stretched(difference / max(np.abs(difference).max(), 1e-12), length)
        tint = (difference[:, None] if along_rows else difference[None, :])[..., None]
        colour = np.where(tint > 0, np.float32(FIRST), np.float32(SECOND))
        picture = (1 - 0.7 * np.abs(tint)) * grey + 0.7 * np.abs(tint) * colour
        for values, line in zip(gates / max(gates.max(), 1e-12), (FIRST, SECOND), strict=True):
            _line(profile, _stretched(values, width), line)
    picture = np.broadcast_to(picture, (height, width, 3)).astype(np.uint8)
    _cross(picture, state.y // s, state.x // s, CROSSHAIR, arm=11)
    return np.concatenate([picture, profile])


def readout(state: State, inspection: Inspection) -> Readout:
    """The chosen pixel in numbers."""
    classes, label = inspection.protocol.classes, inspection.label
    values, order = inspection.probabilities[:, state.y, state.x].topk(min(3, len(classes)))
    ranked = [(classes[k], float(p)) for k, p in zip(order.tolist(), values, strict=True)]
    truth = ""
    if label is not None:
        true_id = int(label[state.y, state.x])
        truth = classes[true_id] if true_id < len(classes) else "not labelled"
    return Readout(
        y=state.y,
        x=state.x,
        prediction=ranked[0][0],
        confidence=ranked[0][1],
        others=tuple(ranked[1:]),
        truth=truth,
        levels=tuple(_level_readout(state, inspection, level) for level in inspection.levels),
    )


def _level_readout(state: State, inspection: Inspection, level: LevelCapture) -> LevelReadout:
    y, x = _on_level(state, inspection, level)
    gates: tuple[float, ...] = ()
    top: tuple[tuple[int, int, float], ...] = ()
    if level.gates is not None:
        along_rows = level.strip_axis == "width"
        if level.query is not None:
            gates = tuple(level.gates[0, :, y, x].tolist())
            values = level.column_attention(y, x)[0]
        else:
            gates = tuple(level.gates[0, :, y if along_rows else x].tolist())
            values = (level.gates[0, 0] - level.gates[0, 1]).abs()
        size = inspection.size[0 if along_rows else 1]
        top = tuple(
            (entry * size // len(values), (entry + 1) * size // len(values) - 1, float(values[entry]))
            for entry in values.topk(min(3, len(values))).indices.tolist()
        )
    decides = ""
    if level.auxiliary is not None:
        decides = inspection.protocol.classes[int(level.auxiliary[0, :, y, x].argmax())]
    share = None if level.attended_share is None else float(level.attended_share[0])
    return LevelReadout(level.name, tuple(level.size), (y, x), level.gamma, share, gates, top, decides)


def _on_level(state: State, inspection: Inspection, level: LevelCapture) -> tuple[int, int]:
    """The level's pixel that lies over the chosen pixel of the image."""
    return tuple(
        min(place * small // large, small - 1)
        for place, small, large in zip((state.y, state.x), level.size, inspection.size, strict=True)
    )


def _layer(state: State, inspection: Inspection) -> tuple[np.ndarray, np.ndarray]:
    """Colours (h, w, 3) of the view and where they are drawn (h, w), bool."""
    s, protocol = inspection.stride, inspection.protocol
    ids = inspection.ids[::s, ::s]
    label = None if inspection.label is None else inspection.label[::s, ::s]
    if state.view == "confidence":
        level = (255 * inspection.confidence[::s, ::s]).numpy()[..., None]
        return np.repeat(level, 3, -1), _shown(ids, state)
    if state.view == "prediction":
        return colourise(ids, protocol), _shown(ids, state)
    if state.view == "image" or label is None:
        return np.zeros((*ids.shape, 3)), np.zeros(ids.shape, bool)
    known = (label < protocol.num_classes).numpy()
    if state.view == "true classes":
        return colourise(label, protocol), _shown(label, state) & known
    wrong = (ids != label).numpy()[..., None]
    return np.where(wrong, np.uint8(WRONG), np.uint8(RIGHT)), _shown(label, state) & known


def _shown(ids: Tensor, state: State) -> np.ndarray:
    table = np.ones(256, bool)
    table[list(state.hidden)] = False
    return table[ids.numpy()]


def _stretched(values: np.ndarray, length: int) -> np.ndarray:
    """(L,) -> (length,), each entry over the pixels that it stands for."""
    return values[np.arange(length) * len(values) // length].astype(np.float32)


def _bars(canvas: np.ndarray, values: np.ndarray, colour: tuple[int, int, int]) -> None:
    heights = (values * (len(canvas) - 4)).astype(int)
    rows = np.arange(len(canvas))[::-1, None]
    canvas[rows < heights] = colour


def _line(canvas: np.ndarray, values: np.ndarray, colour: tuple[int, int, int]) -> None:
    rows = len(canvas) - 3 - (values * (len(canvas) - 6)).astype(int)
    previous = np.concatenate([rows[:1], rows[:-1]])
    low, high = np.minimum(rows, previous), np.maximum(rows, previous)
    every = np.arange(len(canvas))[:, None]
    canvas[(every >= low) & (every <= high + 1)] = colour


def _cross(picture: np.ndarray, y: int, x: int, colour: tuple[int, int, int], *, arm: int) -> None:
    """A cross with a dark rim and an open middle: what is under the pixel stays visible."""
    for tone, rim in (((0, 0, 0), 1), (colour, 0)):
        for reach in (slice(-arm - rim, -3 + rim), slice(4 - rim, arm + 1 + rim)):
            across = slice(max(y - rim, 0), y + rim + 1), slice(max(x + reach.start, 0), max(x + reach.stop, 0))
            along = slice(max(y + reach.start, 0), max(y + reach.stop, 0)), slice(max(x - rim, 0), x + rim + 1)
            picture[across] = tone
            picture[along] = tone


def _on_cpu(level: LevelCapture) -> dict[str, Tensor]:
    return {name: value.cpu() for name, value in vars(level).items() if isinstance(value, Tensor)}
