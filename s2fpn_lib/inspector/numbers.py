"""The chosen pixel in numbers and words: what the inspector's pictures show, for reading, saving and screen readers."""

from __future__ import annotations

from dataclasses import dataclass

from s2fpn_lib.attention.recorder import LevelCapture
from s2fpn_lib.attention.statistics import HARDLY_ANY
from s2fpn_lib.inspector.state import Inspection, State


@dataclass(frozen=True)
class LevelReadout:
    """One level at the chosen pixel, in numbers.

    Attributes:
        name: apf1 to apf4.
        size: (h, w) of the level.
        pixel: (y, x) on the level.
        entries: what the entries of a strip are, "columns" or with strip_axis="width" "rows"; empty with SSAM off.
        own_distribution: whether the pixel has a distribution over the entries (v2).
        gamma: None with SSAM off.
        share: of the blend that the strips make up; None with SSAM off.
        gates: the two gates at the pixel, empty with SSAM off.
        top: v2, up to three (first, last, weight): image columns (or rows) of the entries that the pixel attends to
            most. v1: those whose two gates differ most, with the difference.
        decides: class that the auxiliary head predicts here; empty without one.
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
        """How much the strips matter at this level."""
        if self.gamma is None:
            return "SSAM is off"
        hardly = ": hardly matter" if self.share < HARDLY_ANY else ""
        return f"gamma {self.gamma:.3f}, strips {self.share:.1%} of the blend{hardly}"

    def attention(self) -> str:
        """What the strips do at the pixel; empty with SSAM off."""
        if not self.gates:
            return ""
        places = ", ".join(f"{first}-{last} ({weight:.2g})" for first, last, weight in self.top)
        if self.own_distribution:
            return f"attends most to {self.entries} {places}; gates {self.gates[0]:.2g} and {self.gates[1]:.2g}"
        average, maximum = self.gates
        here = f"gates of this {self.entries[:-1]}: average {average:.2g}, maximum {maximum:.2g}"
        return f"{here}; they differ most at {self.entries} {places}"

    def sentence(self) -> str:
        """The level in one sentence."""
        decides = f"auxiliary head: {self.decides}" if self.decides else ""
        parts = "; ".join(part for part in (self.weight(), self.attention(), decides) if part)
        return f"{self.name}, {self.size[0]}x{self.size[1]}: {parts}."


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

    def text(self) -> str:
        """All of it, a line a fact."""
        others = ", ".join(f"{name} {p:.1%}" for name, p in self.others)
        return "\n".join([self.sentence(), f"Next: {others}.", *(level.sentence() for level in self.levels)])


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


def revision_note(inspection: Inspection) -> str:
    """What the pictures of the levels show, which differs between the revisions."""
    strips = [level for level in inspection.levels if level.gates is not None]
    if not strips:
        return "SSAM is off in this network: there are no strips to show."
    one = "row" if strips[0].strip_axis == "width" else "column"
    if inspection.revision == "v1":
        return (
            f"Revision v1 has two gates for each image {one} and no attention of single pixels: every pixel of a {one} "
            f"shares them. Blue {one}s favour the average strip, vermilion {one}s the maximum strip. (In v2 every "
            f"pixel has a distribution of its own over the {one}s.)"
        )
    return (
        f"Revision v2: every pixel has a distribution of its own over the image {one}s. Lit is where the chosen pixel "
        f"looks, below stands its distribution. (v1 has two gates for each {one} instead.)"
    )


def _level_readout(state: State, inspection: Inspection, level: LevelCapture) -> LevelReadout:
    y, x = inspection.on_level(level, state.y, state.x)
    gates: tuple[float, ...] = ()
    top: tuple[tuple[int, int, float], ...] = ()
    entries = ""
    if level.gates is not None:
        along_rows = level.strip_axis == "width"
        entries = "rows" if along_rows else "columns"
        if level.query is not None:
            gates = tuple(level.gates[0, :, y, x].tolist())
            values = level.column_attention(y, x)[0]
        else:
            gates = tuple(level.gates[0, :, y if along_rows else x].tolist())
            values = (level.gates[0, 0] - level.gates[0, 1]).abs()
        size = inspection.size[0 if along_rows else 1]
        top = tuple(
            (*_places(entry, len(values), size), float(values[entry]))
            for entry in values.topk(min(3, len(values))).indices.tolist()
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
        decides=_decides(level, inspection, y, x),
    )


def _places(entry: int, length: int, size: int) -> tuple[int, int]:
    """First and last of the image's `size` columns (or rows) that lie under one of a strip's `length` entries."""
    return -(-entry * size // length), -(-(entry + 1) * size // length) - 1


def _decides(level: LevelCapture, inspection: Inspection, y: int, x: int) -> str:
    if level.auxiliary is None:
        return ""
    return inspection.protocol.classes[int(level.auxiliary[0, :, y, x].argmax())]
