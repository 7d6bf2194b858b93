"""The inspector's view as one still picture: for readers without a kernel, for saving, for papers."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from s2fpn_lib.inspector.numbers import LevelReadout, Readout, readout, revision_note
from s2fpn_lib.inspector.state import Inspection, State
from s2fpn_lib.inspector.views import render, render_level
from s2fpn_lib.viz.images import legend_patches
from s2fpn_lib.viz.style import BAD, INK, MUTED, styled

# Inches: the figure, a model's picture and one of its levels
WIDTH, MAIN, LEVEL = 11, 6.38, 2.54
# Inches: the margin, the gap between pictures, the room for a title, for a level's text, for the legend
MARGIN, GAP, HEAD, CAPTION, LEGEND = 0.12, 0.2, 0.32, 0.95, 0.5


@styled
def inspection_figure(state: State, inspections: Sequence[Inspection]) -> Figure:
    """One block per model: the picture with its readout, and the four levels below it.

    inspections: inspections of the same image, one per model.
    """
    height, width = inspections[0].size
    main_height = MAIN * height / width
    level_shape = render_level(state, inspections[0], 0).shape
    level_height = LEVEL * level_shape[0] / level_shape[1]
    block = HEAD + main_height + HEAD + level_height + CAPTION
    total = block * len(inspections) + LEGEND
    figure = plt.figure(figsize=(WIDTH, total))

    def place(left: float, top: float, wide: float, high: float) -> Axes:
        axis = figure.add_axes([left / WIDTH, (total - top - high) / total, wide / WIDTH, high / total])
        axis.set_axis_off()
        return axis

    for i, inspection in enumerate(inspections):
        found = readout(state, inspection)
        top = i * block + HEAD
        axis = place(MARGIN, top, MAIN, main_height)
        axis.imshow(render(state, inspection), aspect="auto", interpolation="auto")
        axis.set_title("  on  ".join(filter(None, (inspection.model_name, inspection.name))))
        text_left = MARGIN + MAIN + 0.25
        _write(place(text_left, top, WIDTH - text_left - MARGIN, main_height), found, inspection, state)
        top += main_height + HEAD
        for index, level in enumerate(found.levels):
            axis = place(MARGIN + index * (LEVEL + GAP), top, LEVEL, level_height)
            axis.imshow(render_level(state, inspection, index), aspect="auto", interpolation="auto")
            _describe(axis, level)
    patches = legend_patches(inspections[0].protocol, ignored=False)
    figure.legend(handles=patches, ncols=8, loc="lower center", fontsize=8.5)
    return figure


def _write(axis: Axes, found: Readout, inspection: Inspection, state: State) -> None:
    """Writes the readout of the chosen pixel; the axes' unit is an inch, from the upper left corner."""
    box = axis.get_window_extent().transformed(axis.figure.dpi_scale_trans.inverted())
    axis.set(xlim=(0, box.width), ylim=(box.height, 0))
    axis.text(0, 0.02, found.prediction, fontsize=17, weight="bold", va="top")
    truth = f"true class {found.truth}" if found.truth else "true class unknown"
    where = f"row {found.y}, column {found.x}; {truth}; view: {state.view}"
    axis.text(0, 0.40, where, va="top", fontsize=9, color=MUTED)
    y = 0.82
    for name, p in ((found.prediction, found.confidence), *found.others):
        color = np.array(inspection.protocol.palette[inspection.protocol.classes.index(name)]) / 255
        length = box.width * 0.55 * p
        axis.barh(y, length, left=1.05, height=0.16, color=color, edgecolor=INK, linewidth=0.5)
        axis.text(0.98, y, name, ha="right", va="center", fontsize=8.5)
        axis.text(1.12 + length, y, f"{p:.1%}", va="center", fontsize=8.5)
        y += 0.24
    y += 0.1
    for text, color, weight in (
        (inspection.warning, BAD, "bold"),
        (revision_note(inspection), MUTED, "normal"),
        (_pins(state, inspection), INK, "normal"),
    ):
        if text:
            lines = textwrap.fill(text, int(box.width * 14.5))
            axis.text(0, y, lines, va="top", fontsize=8.2, color=color, weight=weight, linespacing=1.35)
            y += 0.16 * (len(lines.splitlines()) + 0.8)


def _describe(axis: Axes, level: LevelReadout) -> None:
    axis.set_title(level.name)
    axis.set_title(f"{level.size[0]}x{level.size[1]}", loc="right", fontsize=8.2, fontweight="normal", color=MUTED)
    text = "\n".join(textwrap.fill(fact, int(LEVEL * 17)) for fact in level.facts())
    axis.text(0, -0.03, text, transform=axis.transAxes, va="top", fontsize=7.3, color=INK, linespacing=1.3)


def _pins(state: State, inspection: Inspection) -> str:
    found = [readout(state.at(y, x, inspection.size), inspection) for y, x in state.pins]
    lines = [f"{each.y}, {each.x}: {each.prediction} {each.confidence:.0%}" for each in found]
    return "Pinned (row, column): " + "; ".join(lines) if lines else ""
