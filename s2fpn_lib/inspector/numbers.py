"""The chosen pixel in numbers and words: what the pictures show, as text for readers, files, and screen readers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from s2fpn_lib.attention.recorder import LevelCapture
from s2fpn_lib.attention.statistics import NEGLIGIBLE_SHARE
from s2fpn_lib.inspector.state import Inspection, State


@dataclass(frozen=True)
class LevelReadout:
    """One level at the chosen pixel.

    Attributes:
        name: apf1 to apf4.
        size: (h, w) of the level.
        pixel: (y, x) on the level.
        entries: what the strip entries stand for, "columns" or (strip_axis="width") "rows"; empty without SSAM.
        own_distribution: True in v2, where each pixel has a distribution over the entries.
        gamma: the learned weight of the strips; None without SSAM.
        share: share of the blend that the strips make up; None without SSAM.
        gates: the two gates at the pixel; empty without SSAM.
        top: up to three (first, last, weight), the image columns (or rows) first..last of an entry. v2: the entries
            that the pixel attends to most. v1: the entries whose two gates differ most, with the difference.
        decides: class predicted here by the level's auxiliary head; empty without one.
    """

    name: str
    size: tuple[int, int]
    pixel: tuple[int, int]
    entries: str
    own_distribution: bool
    gamma: float | None
    share: float | None
    gates: tuple[float, ...]
    top: tuple[tuple[int, int, float], ...]
    decides: str

    def weight(self) -> str:
        """How much the strips contribute at this level."""
        if self.gamma is None:
            return "SSAM is off"
        hardly = ": hardly matter" if self.share < NEGLIGIBLE_SHARE else ""
        return f"gamma {self.gamma:.3f}, strips {self.share:.1%} of the blend{hardly}"

    def attention(self) -> str:
        """What the strips do at the pixel; empty without SSAM."""
        if not self.gates:
            return ""
        places = ", ".join(f"{first}-{last} ({weight:.2g})" for first, last, weight in self.top)
        if self.own_distribution:
            return f"attends most to {self.entries} {places}; gates {self.gates[0]:.2g} and {self.gates[1]:.2g}"
        average, maximum = self.gates
        here = f"gates of this {self.entries[:-1]}: average {average:.2g}, maximum {maximum:.2g}"
        return f"{here}; they differ most at {self.entries} {places}"

    def facts(self) -> list[str]:
        """Weight, attention, and the auxiliary head's class, as far as the level has them."""
        decides = f"auxiliary head: {self.decides}" if self.decides else ""
        return [fact for fact in (self.weight(), self.attention(), decides) if fact]

    def sentence(self) -> str:
        """The level in one sentence."""
        return f"{self.name}, {self.size[0]}x{self.size[1]}: {'; '.join(self.facts())}."


@dataclass(frozen=True)
class Readout:
    """The chosen pixel (y, x) of the image.

    Attributes:
        prediction, confidence: the most probable class and its probability.
        others: the next two classes with their probabilities.
        truth: the true class, "not labeled", or empty if the image has no label.
        levels: apf1 to apf4.
    """

    y: int
    x: int
    prediction: str
    confidence: float
    others: tuple[tuple[str, float], ...]
    truth: str
    levels: tuple[LevelReadout, ...]

    def sentence(self) -> str:
        """The prediction in one sentence, for screen readers."""
        truth = f", true class {self.truth}" if self.truth else ""
        return f"Row {self.y}, column {self.x}: {self.prediction}, {self.confidence:.0%} sure{truth}."

    def text(self) -> str:
        """Everything, one fact per line."""
        others = ", ".join(f"{name} {p:.1%}" for name, p in self.others)
        return "\n".join([self.sentence(), f"Next: {others}.", *(level.sentence() for level in self.levels)])


def readout(state: State, inspection: Inspection) -> Readout:
    """The chosen pixel in numbers."""
    classes, label = inspection.protocol.classes, inspection.label
    values, order = inspection.probabilities[:, state.y, state.x].topk(min(3, len(classes)))
    ranked = [(classes[k], p) for k, p in zip(order.tolist(), values.tolist(), strict=True)]
    truth = ""
    if label is not None:
        true_id = int(label[state.y, state.x])
        truth = classes[true_id] if true_id < len(classes) else "not labeled"
    return Readout(
        y=state.y,
        x=state.x,
        prediction=ranked[0][0],
        confidence=ranked[0][1],
        others=tuple(ranked[1:]),
        truth=truth,
        levels=tuple(_level_readout(state, inspection, level) for level in inspection.levels),
    )


def revision_note(inspection: Inspection) -> str:
    """Explains what the pictures of the levels show, which differs between v1 and v2."""
    strips = [level for level in inspection.levels if level.gates is not None]
    if not strips:
        return "SSAM is off in this network: there are no strips to show."
    one = "row" if strips[0].strip_axis == "width" else "column"
    if inspection.revision == "v1":
        return (
            f"Revision v1 has two gates per image {one}, shared by all pixels of the {one}. A {one} is blue where the "
            f"gate of the average strip is larger and vermilion where the gate of the maximum strip is larger. (In v2 "
            f"each pixel has its own distribution over the {one}s.)"
        )
    return (
        f"Revision v2: each pixel has its own distribution over the image {one}s. The {one}s that the chosen pixel "
        f"attends to are bright; the plot below shows the distribution. (v1 has two gates per {one} instead.)"
    )


def _level_readout(state: State, inspection: Inspection, level: LevelCapture) -> LevelReadout:
    y, x = inspection.on_level(level, state.y, state.x)
    along_rows = level.strip_axis == "width"
    entries, gates, top = "", (), ()
    if level.gates is not None:
        entries = "rows" if along_rows else "columns"
        if level.query is not None:
            gates = tuple(level.gates[0, :, y, x].tolist())
            values = level.column_attention(y, x)[0]
        else:
            gates = tuple(level.gates[0, :, y if along_rows else x].tolist())
            values = (level.gates[0, 0] - level.gates[0, 1]).abs()
        size, length = inspection.size[0 if along_rows else 1], len(values)
        weights, order = values.topk(min(3, length))
        top = tuple(
            (math.ceil(entry * size / length), math.ceil((entry + 1) * size / length) - 1, weight)
            for entry, weight in zip(order.tolist(), weights.tolist(), strict=True)
        )
    return LevelReadout(
        name=level.name,
        size=tuple(level.size),
        pixel=(y, x),
        entries=entries,
        own_distribution=level.query is not None,
        gamma=level.gamma,
        share=None if level.attended_share is None else float(level.attended_share[0]),
        gates=gates,
        top=top,
        decides="" if level.auxiliary is None else inspection.protocol.classes[level.auxiliary[0, :, y, x].argmax()],
    )
