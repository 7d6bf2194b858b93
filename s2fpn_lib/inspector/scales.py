"""Color scales of the inspector's pictures, and the values that each view draws with them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import LogNorm, Normalize
from torch import Tensor

from s2fpn_lib.inspector.state import Inspection, State
from s2fpn_lib.viz.style import ATTENTION_CMAP, ATTENTION_RANGE, CONFIDENCE_CMAP, GATE_CMAP


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
    gates = [level.gates[0] for level in inspection.levels if level.gates is not None]
    limit = max((float((one - two).abs().max()) for one, two in gates), default=1.0) or 1.0
    title, ticks = "gate of the average strip minus that of the maximum strip", (-limit, 0, limit)
    return Scale(title, Normalize(-limit, limit, clip=True), ticks, [f"{tick:.2g}" for tick in ticks], GATE_CMAP)


def level_values(inspection: Inspection, index: int, y: int, x: int) -> np.ndarray:
    """(L,) numbers that a level draws at the pixel (y, x), as `level_scale` has them."""
    level = inspection.levels[index]
    if level.query is None:
        return (level.gates[0, 0] - level.gates[0, 1]).numpy()
    attention = level.column_attention(*inspection.on_level(level, y, x))[0].numpy()
    return attention * len(attention)
