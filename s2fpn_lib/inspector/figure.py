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
from s2fpn_lib.viz.style import BAD, INK, MUTED, picture_axes, styled

# Inches: the rim, between pictures, room for a title, for the words under a level, for the legend
MARGIN, GAP, HEAD, CAPTION, LEGEND = 0.12, 0.2, 0.32, 0.95, 0.5


@styled
def inspection_figure(
    state: State, inspections: Sequence[Inspection], names: Sequence[str], *, width: float = 11
) -> Figure:
    """For each model the picture with its readout, and below it the four levels; one block under the other.

    inspections: of the same image, one a model. names: the models', drawn as titles.
    """
    mains = [render(state, inspection) for inspection in inspections]
    levels = [[render_level(state, each, index) for index in range(len(each.levels))] for each in inspections]
    main, small = 0.58 * width, (width - 2 * MARGIN - 3 * GAP) / 4
    main_height = main * mains[0].shape[0] / mains[0].shape[1]
    small_height = small * levels[0][0].shape[0] / levels[0][0].shape[1]
    block = HEAD + main_height + HEAD + small_height + CAPTION
    total = block * len(inspections) + LEGEND
    figure = plt.figure(figsize=(width, total))

    def place(left: float, top: float, wide: float, high: float) -> Axes:
        axis = figure.add_axes([left / width, (total - top - high) / total, wide / width, high / total])
        picture_axes(axis)
        return axis

    for i, inspection in enumerate(inspections):
        found = readout(state, inspection)
        top = i * block + HEAD
        axis = place(MARGIN, top, main, main_height)
        axis.imshow(mains[i], aspect="auto", interpolation="auto")
        axis.set_title(f"{names[i]}  on  {inspection.name}" if inspection.name else names[i])
        text_left = MARGIN + main + 0.25
        _write(place(text_left, top, width - text_left - MARGIN, main_height), found, inspection, state)
        top += main_height + HEAD
        for index, picture in enumerate(levels[i]):
            axis = place(MARGIN + index * (small + GAP), top, small, small_height)
            axis.imshow(picture, aspect="auto", interpolation="auto")
            _describe(axis, found.levels[index], small)
    figure.legend(
        handles=legend_patches(inspections[0].protocol, ignored=False), ncols=8, loc="lower center", fontsize=8.5
    )
    return figure


def _write(axis: Axes, found: Readout, inspection: Inspection, state: State) -> None:
    """The chosen pixel in words and bars; the axes count in inches from the upper left corner."""
    figure = axis.figure
    box = axis.get_position()
    wide, high = box.width * figure.get_figwidth(), box.height * figure.get_figheight()
    axis.set(xlim=(0, wide), ylim=(high, 0))
    axis.set_facecolor("none")
    axis.text(0, 0.02, found.prediction, fontsize=17, weight="bold", va="top")
    truth = f"true class {found.truth}" if found.truth else "true class unknown"
    where = f"row {found.y}, column {found.x}; {truth}; view: {state.view}"
    axis.text(0, 0.40, where, va="top", fontsize=9, color=MUTED)
    y = 0.82
    for name, p in ((found.prediction, found.confidence), *found.others):
        color = np.array(inspection.protocol.palette[inspection.protocol.classes.index(name)]) / 255
        axis.barh(y, wide * 0.55 * p, left=1.05, height=0.16, color=color, edgecolor=INK, linewidth=0.5)
        axis.text(0.98, y, name, ha="right", va="center", fontsize=8.5)
        axis.text(1.12 + wide * 0.55 * p, y, f"{p:.1%}", va="center", fontsize=8.5)
        y += 0.24
    y += 0.1
    characters = int(wide * 14.5)
    for text, color, weight in (
        (inspection.warning, BAD, "bold"),
        (revision_note(inspection), MUTED, "normal"),
        (_pins(state, inspection), INK, "normal"),
    ):
        if text:
            lines = textwrap.fill(text, characters, replace_whitespace=False)
            axis.text(0, y, lines, va="top", fontsize=8.2, color=color, weight=weight, linespacing=1.35)
            y += 0.16 * (len(lines.splitlines()) + 0.8)


def _describe(axis: Axes, level: LevelReadout, wide: float) -> None:
    axis.set_title(level.name)
    axis.set_title(f"{level.size[0]}x{level.size[1]}", loc="right", fontsize=8.2, fontweight="normal", color=MUTED)
    facts = [level.weight(), level.attention(), f"auxiliary head: {level.decides}" if level.decides else ""]
    text = "\n".join(textwrap.fill(fact, int(wide * 17)) for fact in facts if fact)
    axis.text(0, -0.03, text, transform=axis.transAxes, va="top", fontsize=7.3, color=INK, linespacing=1.3)


def _pins(state: State, inspection: Inspection) -> str:
    found = [readout(state.at(y, x, inspection.size), inspection) for y, x in state.pins]
    lines = [f"{each.y}, {each.x}: {each.prediction} {each.confidence:.0%}" for each in found]
    return "Pinned (row, column): " + "; ".join(lines) if lines else ""
