"""The numbers behind the pictures: what each view draws on which color scale, and the chosen pixel in words."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import LogNorm, Normalize
from torch import Tensor

from s2fpn_lib.attention.recorder import LevelCapture
from s2fpn_lib.attention.statistics import NEGLIGIBLE_SHARE
from s2fpn_lib.inspector.state import Inspection, State
from s2fpn_lib.viz.style import ATTENTION_CMAP, ATTENTION_RANGE, CONFIDENCE_CMAP, GATE_CMAP

NOTES = {
    "v1": "Colors: green where the gate of the average strip is larger, purple where that of the maximum strip is. In "
    "revision v1 all pixels of an image {one} share these two gates.",
    "v2": "Colors: how much the chosen pixel attends to each image {one}, relative to uniform attention (1). In "
    "revision v2 each pixel has its own distribution.",
}


@dataclass(frozen=True, eq=False)
class Scale:
    """Colors of numbers; numbers beyond the ends have the color of the end."""

    title: str  # the quantity with its unit
    norm: Normalize  # number -> 0 to 1
    ticks: Sequence[float]
    labels: Sequence[str]
    cmap: str = CONFIDENCE_CMAP

    @property
    def colors(self) -> np.ndarray:
        """(256, 3) uint8."""
        return (255 * plt.colormaps[self.cmap](np.arange(256))[:, :3]).round().astype(np.uint8)

    def paint(self, values: np.ndarray) -> np.ndarray:
        """Numbers (...) -> colors (..., 3) uint8."""
        return self.colors[(255 * np.asarray(self.norm(values))).round().astype(np.uint8)]

    def plain(self) -> dict[str, Any]:
        """The scale as JSON holds it."""
        ticks = list(zip(np.asarray(self.norm(self.ticks)).tolist(), self.labels, strict=True))
        ends = {"low": self.norm.vmin, "high": self.norm.vmax, "log": isinstance(self.norm, LogNorm)}
        return {"title": self.title, "ticks": ticks, "colors": self.colors.tolist(), **ends}


UNIT = Normalize(0, 1, clip=True), (0, 0.25, 0.5, 0.75, 1), ("0", "0.25", "0.5", "0.75", "1")
BITS = Normalize(0, 2, clip=True), (0, 0.5, 1, 1.5, 2), ("0", "0.5", "1", "1.5", "≥ 2")  # 2: of four equal classes
FACTORS = LogNorm(*ATTENTION_RANGE, clip=True), (0.1, 1, 10, 100), ("≤ 0.1", "1", "10", "≥ 100")
# In each of these but the last, yellow means sure and blue unsure
SCALES = {
    "confidence": Scale("probability of the predicted class", *UNIT),
    "entropy": Scale("entropy in bits", *BITS, f"{CONFIDENCE_CMAP}_r"),
    "margin": Scale("margin: first minus second probability", *UNIT),
    "class probability": Scale("probability of the class", *UNIT),
    "total variation": Scale("total variation distance of the models", *UNIT, "viridis"),
}
ATTENTION = Scale("attention relative to uniform (1)", *FACTORS, ATTENTION_CMAP)


def view_values(state: State, inspection: Inspection, other: Inspection | None = None) -> np.ndarray:
    """(h, w) float32 numbers that a view of `SCALES` draws; other: the second model, for "total variation"."""
    p = inspection.drawn(inspection.probabilities)
    if state.view == "entropy":
        return (torch.special.entr(p).sum(0) / np.log(2)).numpy()
    if state.view == "margin":
        return margin(p).numpy()
    if state.view == "class probability":
        return p[state.shown_class].numpy()
    if state.view == "total variation":
        return (0.5 * (p - other.drawn(other.probabilities)).abs().sum(0)).numpy()
    return p.amax(0).numpy()


def margin(probabilities: Tensor) -> Tensor:
    """(K, ...) -> (...), the largest minus the second largest probability; the largest where there is one class."""
    first, *second = probabilities.topk(min(2, len(probabilities)), 0).values
    return first - sum(second)


def level_scale(inspection: Inspection) -> Scale:
    """The scale that the levels share: of the attention in v2, of the difference of the gates in v1."""
    if inspection.revision == "v2":
        return ATTENTION
    values = [level.strip_values(0, 0).abs().max() for level in inspection.levels if level.gates is not None]
    limit = float(max(values, default=1.0)) or 1.0
    title, ticks = "gate of the average strip minus that of the maximum strip", (-limit, 0, limit)
    return Scale(title, Normalize(-limit, limit, clip=True), ticks, [f"{tick:.2g}" for tick in ticks], GATE_CMAP)


@dataclass(frozen=True)
class LevelReadout:
    """One level at the chosen pixel; what belongs to SSAM or the auxiliary head is empty or None without it.

    `top` has up to three (first, last, weight), the image columns (or rows) first..last of the strip entries with the
    largest `LevelCapture.strip_values`.
    """

    name: str  # apf1 to apf4
    size: tuple[int, int]  # (h, w)
    pixel: tuple[int, int]  # (y, x) on the level
    entries: str = ""  # what the strip entries stand for: "columns" or (strip_axis="width") "rows"
    own_distribution: bool = False  # True in v2, where each pixel has a distribution over the entries
    gamma: float | None = None  # learned weight of the strips
    share: float | None = None  # of the strips in the blend
    gates: tuple[float, ...] = ()  # the two gates at the pixel
    top: tuple[tuple[int, int, float], ...] = ()
    decides: str = ""  # class predicted here by the level's auxiliary head

    def weight(self) -> str:
        """How much the strips contribute at this level."""
        if self.gamma is None:
            return "SSAM is off"
        hardly = ": hardly matter" if self.share < NEGLIGIBLE_SHARE else ""
        return f"gamma {self.gamma:.3f}, strips {self.share:.1%} of the blend{hardly}"

    def facts(self) -> list[str]:
        """The weight of the strips, what they do at the pixel, and the auxiliary head's class, where they exist."""
        facts = [self.weight()]
        if self.gates:
            top = [each for each in self.top if each[2] >= 1 or not self.own_distribution] or self.top[:1]
            times = "x" if self.own_distribution else ""
            places = ", ".join(f"{first}-{last} ({_short(weight)}{times})" for first, last, weight in top)
            one, two = map(_short, self.gates)
            v2 = f"attends most to {self.entries} {places.replace('x)', 'x uniform)', 1)}; gates {one} and {two}"
            v1 = f"gates of this {self.entries[:-1]}: average {one}, maximum {two}"
            facts.append(v2 if self.own_distribution else f"{v1}; they differ most at {self.entries} {places}")
        if self.decides:
            facts.append(f"auxiliary head: {self.decides}")
        return facts

    def sentence(self) -> str:
        """The level in one sentence."""
        return f"{self.name}, {self.size[0]}x{self.size[1]}: {'; '.join(self.facts())}."


@dataclass(frozen=True)
class Readout:
    """The chosen pixel (y, x) of the image."""

    y: int
    x: int
    prediction: str  # the most probable class
    confidence: float  # its probability
    others: tuple[tuple[str, float], ...]  # the next two classes with their probabilities
    truth: str  # the true class, "not labeled", or empty if the image has no label
    entropy: float  # of the class probabilities, in bits
    margin: float  # the first minus the second probability
    levels: tuple[LevelReadout, ...]  # apf1 to apf4
    seen: bool = False  # whether the model was trained on the image

    def truth_words(self) -> str:
        """The true class in words, with the remark that the model was trained on it."""
        return f"{self.truth or 'unknown'}{' (trained on)' if self.truth and self.seen else ''}"

    def sentence(self) -> str:
        """The prediction in one sentence, for screen readers."""
        truth = f", true class {self.truth_words()}" if self.truth else ""
        return f"Row {self.y}, column {self.x}: {self.prediction}, {self.confidence:.0%} sure{truth}."

    def text(self) -> str:
        """Everything, one fact per line."""
        others = ", ".join(f"{name} {p:.1%}" for name, p in self.others)
        sure = f"Next: {others}. Entropy {self.entropy:.2f} bits, margin {self.margin:.2f}."
        return "\n".join([self.sentence(), sure, *(level.sentence() for level in self.levels)])


def readout(state: State, inspection: Inspection) -> Readout:
    """The chosen pixel in numbers, the drawn one where the image is drawn with a stride."""
    state = state.at(state.y, state.x, inspection.size, inspection.stride)
    classes, label = inspection.protocol.classes, inspection.picture.label
    p = inspection.probabilities[:, state.y, state.x]
    values, order = p.topk(min(3, len(classes)))
    (first, confidence), *others = zip([classes[k] for k in order], values.tolist(), strict=True)
    truth = "" if label is None else dict(enumerate(classes)).get(int(label[state.y, state.x]), "not labeled")
    levels = tuple(_level_readout(state, inspection, level) for level in inspection.levels)
    unsure = float(torch.special.entr(p).sum()) / math.log(2), float(margin(p))
    return Readout(state.y, state.x, first, confidence, tuple(others), truth, *unsure, levels, inspection.seen)


def revision_note(inspection: Inspection) -> str:
    """Explains what the pictures of the levels show, which differs between v1 and v2."""
    axes = [level.strip_axis for level in inspection.levels if level.strip_axis]
    if not axes:
        return "SSAM is off in this network: there are no strips to show."
    return NOTES[inspection.revision].format(one="row" if axes[0] == "width" else "column")


def _short(value: float) -> str:
    """Two significant digits without an exponent."""
    return f"{value:.0f}" if abs(value) >= 10 else f"{value:.2g}" if abs(value) >= 1e-4 else "0"


def _level_readout(state: State, inspection: Inspection, level: LevelCapture) -> LevelReadout:
    place = inspection.on_level(level, state.y, state.x)
    found = LevelReadout(level.name, tuple(level.size), place, own_distribution=level.query is not None)
    if level.auxiliary is not None:
        found = replace(found, decides=inspection.protocol.classes[level.auxiliary[0, :, *place].argmax()])
    if level.gates is None:
        return found
    axis = 0 if level.strip_axis == "width" else 1
    gates = level.gates[0, :, place[axis]] if level.query is None else level.gates[0, :, *place]
    values = level.strip_values(*place)[0].abs()
    edges = [math.ceil(entry * inspection.size[axis] / len(values)) for entry in range(len(values) + 1)]
    order = values.argsort(descending=True, stable=True)[:3].tolist()
    top = tuple((edges[entry], edges[entry + 1] - 1, float(values[entry])) for entry in order)
    strips = {"gamma": level.gamma, "share": float(level.attended_share[0])}
    return replace(found, **strips, entries=("rows", "columns")[axis], gates=tuple(gates.tolist()), top=top)
