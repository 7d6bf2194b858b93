"""Figures of a recorded forward pass, all levels side by side, for notebooks and papers."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from s2fpn_lib.attention.recorder import Capture, LevelCapture
from s2fpn_lib.attention.statistics import AttentionStatistics, coarse_share
from s2fpn_lib.data import Protocol
from s2fpn_lib.metrics import class_ids
from s2fpn_lib.viz.charts import heatmap
from s2fpn_lib.viz.images import as_array, colorize, legend_patches
from s2fpn_lib.viz.style import COLORS, INK, MARKERS, MUTED, styled, with_warning

DIVERGING = "RdBu_r"  # red above 0, blue below: distinct for color-blind readers
PIXELS = ((0.60, 0.20), (0.45, 0.50), (0.75, 0.80))  # (y, x) in 0..1 whose attention over the columns is drawn
WIDTH = 11.0  # of attention_figure, in inches
STRIP_HEIGHT = 0.42  # of a row that draws strips, in widths of a cell
SMALL: dict[str, Any] = {"fontsize": 8.2, "fontweight": "normal", "color": MUTED, "pad": 3}
NOTES = {
    "v1": "Two gates per {entry} weigh the average\nstrip a and the maximum strip m. They are\n"
    "softmax over C channels: 1/C is uniform.",
    "v2": "Each pixel attends over the {entry}s; the\nresult gives two gates per pixel, which weigh\n"
    "its query q and the maximum strip m.",
}
BLEND_NOTE = "γ blends the strips in. “strips” is their share\nof the blend; below 1 % it is negligible."


@styled
def attention_figure(
    image: Tensor,
    capture: Capture,
    protocol: Protocol,
    *,
    index: int = 0,
    label: Tensor | None = None,
    pixels: Sequence[tuple[float, float]] = PIXELS,
    warning: str = "",
) -> Figure:
    """One image of a recorded batch; below it the auxiliary predictions, gates, strips, and GFU shares of each level.

    Gates are red above 0 and blue below, with full color at the largest magnitude of the map; their range is printed.
    image: (3, H, W) uint8, the input of the network; index: its place in the batch; label: its (H, W) ids, drawn beside
    the prediction; pixels: (y, x) in 0..1 whose distributions over the columns are drawn (v2 only).
    """
    levels = [level.of_image(index) for level in capture.levels]
    entry = "row" if levels[0].strip_axis == "width" else "column"  # of a strip
    rows, aspect = _rows(capture, entry), image.shape[-2] / image.shape[-1]
    flat = ("strips", "columns", "gate1", "gate2") if capture.revision == "v1" else ("strips", "columns")
    ratios = [aspect, *(STRIP_HEIGHT if row in flat else aspect for row in rows)]
    size = (WIDTH, (WIDTH - 1.5) / 4 * sum(ratios) + 0.3 * len(ratios) + 0.7)
    figure, axes = plt.subplots(len(ratios), 4, figsize=size, height_ratios=ratios, squeeze=False, layout="constrained")
    with_warning(figure, warning)
    images = {"image": as_array(image), "prediction": colorize(class_ids(capture.logits)[index], protocol)}
    if label is not None:
        images["label"] = colorize(label, protocol)
    for axis, (title, shown) in zip(axes[0], images.items(), strict=False):
        _show(axis, shown)
        axis.set_title(title)
    for axis in axes[0, len(images) :]:
        axis.set_axis_off()
    if "strips" in rows:
        note = f"revision {capture.revision}\n{NOTES[capture.revision].format(entry=entry)}\n\n{BLEND_NOTE}"
        axes[0, -1].text(0, 1, note, va="top", fontsize=7.2, color=MUTED)
    for i, (y, x) in enumerate(pixels if "columns" in rows else ()):
        axes[0, 0].plot(x, y, MARKERS[i % 7], color=COLORS[i % 7], ms=9, mec="white", mew=1.4)
    offset = {"xycoords": "axes fraction", "xytext": (-32, 0), "textcoords": "offset points"}
    for row_axes, (row, title) in zip(axes[1:], rows.items(), strict=True):
        row_axes[0].annotate(title, (0, 0.5), ha="right", va="center", fontsize=8.8, color=INK, **offset)
        for column, (axis, level) in enumerate(zip(row_axes, levels, strict=True)):
            if row == "auxiliary":
                _show(axis, colorize(class_ids(level.auxiliary)[0], protocol))
            elif row == "gfu":
                share = coarse_share(capture.gfu[column])[index].cpu().numpy()
                _show(axis, share, cmap="viridis", vmin=0, vmax=1)
                axis.set_title(f"{capture.gfu[column].name}: {share.min():.2f} to {share.max():.2f}", **SMALL)
            elif row in ("gate1", "gate2"):
                _draw_gate(axis, level, level.gates[0, int(row == "gate2")].numpy())
            else:
                _draw_curves(axis, row, level, pixels)
    for axis, level in zip(axes[1] if rows else (), levels, strict=False):
        axis.set_title("\n".join(filter(None, (level.name, axis.get_title(loc="left")))))
        facts = f"{level.size[0]}x{level.size[1]}"
        if level.gamma is not None:
            facts += f", γ {level.gamma:.3f}, strips {level.attended_share.item():.1%}".replace("-", "−")
        axis.set_title(facts, loc="right", **{**SMALL, "fontsize": 7.2})
    figure.legend(handles=legend_patches(protocol, ignored=False), ncols=8, loc="outside lower center", fontsize=8.5)
    return figure


@styled
def crb_figure(statistics: AttentionStatistics, capture: Capture, *, index: int = 0) -> Figure:
    """CRB: the sorted channel weights of one image, and the mean weight in the regions of each class over the split."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.4), layout="constrained", width_ratios=[1, 1.7])
    for level, color in zip(capture.levels, COLORS, strict=False):
        if level.crb is not None:
            weights = np.sort(level.crb[index].cpu().numpy())[::-1]
            left.plot(np.linspace(0, 100, len(weights)), weights, label=f"{level.name} ({len(weights)})", color=color)
    left.axhline(0.5, color=MUTED, lw=0.8, ls=":")
    left.set(title="channel weights of one image, sorted", xlabel="% of the channels", ylabel="weight", ylim=(0, 1))
    left.legend(fontsize=8.5, title="level (channels)")
    table = statistics.crb_by_class
    spread = max(0.02, float(np.nanmax(np.abs(table.to_numpy() - 0.5)))) if table.size else 0.5
    scale = {"cmap": DIVERGING, "vmin": 0.5 - spread, "vmax": 0.5 + spread}
    heatmap(right, table, annot=True, fmt=".2f", linewidths=0.5, cbar=False, **scale)
    right.set_title("mean weight in the regions of a class, weighted by activation")
    return figure


@styled
def statistics_figure(statistics: AttentionStatistics) -> Figure:
    """Statistics of a split, one point per image; ValueError for a network without strip attention and CRB."""
    titles = {
        "attended_share": "share of the strips\nin the blend",
        "entropy": "entropy of P\n(1: uniform)",
        "reach": "reach of P\n(image widths)",
        "gate1_concentration": "concentration of gate 1\n(0: uniform)",
        "gate2_concentration": "concentration of gate 2\n(0: uniform)",
        "crb_std": "standard deviation\nof the CRB weights",
    }
    uniform = {"entropy": 1, "reach": 1 / 3}
    images = statistics.images.dropna(axis="columns", how="all")
    panels = {column: title for column, title in titles.items() if column in images}
    if not panels:
        raise ValueError("nothing to draw: this network has neither strip attention nor CRB")
    figure, axes = plt.subplots(1, len(panels), figsize=(2.75 * len(panels), 3.0), layout="constrained", squeeze=False)
    for axis, (column, title) in zip(axes[0], panels.items(), strict=True):
        levels = images.groupby("level", sort=False)[column]
        for i, (_, values) in enumerate(levels):
            x = i + np.linspace(-0.22, 0.22, len(values)) if len(values) > 1 else [i]
            axis.scatter(x, values, s=14, color=COLORS[i], alpha=0.65, marker=MARKERS[i], linewidths=0)
            axis.hlines(values.mean(), i - 0.34, i + 0.34, color=INK, lw=1.4)
        axis.set_xticks(range(len(levels)), list(levels.groups))
        axis.set_title(title, fontsize=9)
        axis.grid(axis="x", visible=False)
        if column in uniform:
            axis.axhline(uniform[column], color=MUTED, lw=0.9, ls=":")
        axis.set_ylim(bottom=0)
    return figure


def _rows(capture: Capture, entry: str) -> dict[str, str]:
    """{row: its title} of the parts that the network has."""
    level, rows = capture.levels[0], {}
    if level.auxiliary is not None:
        rows["auxiliary"] = "auxiliary\nprediction"
    if level.gates is not None:
        rows["gate1"] = f"gate 1\n(weighs {'a' if capture.revision == 'v1' else 'q'})"
        rows |= {"gate2": "gate 2\n(weighs m)", "strips": "strips,\nRMS over C"}
    if level.query is not None:
        rows["columns"] = f"attention\nover {entry}s"
    if capture.gfu is not None:
        rows["gfu"] = "share of the\ncoarser level"
    return rows


def _show(axis: Axes, values: np.ndarray, **options: Any) -> None:
    """Draws an image or a map over the whole cell, so that columns of all levels lie under the image's columns."""
    axis.imshow(values, aspect="auto", extent=(0, 1, 1, 0), **options)
    axis.set_axis_off()


def _draw_gate(axis: Axes, level: LevelCapture, values: np.ndarray) -> None:
    """values: (h, w) in v2, (L,) in v1."""
    uniform = ""
    if values.ndim == 1:
        uniform = f", uniform {1 / level.strip_max.shape[1]:.3f}"
        values = values[None, :] if level.strip_axis == "height" else values[:, None]
    largest = max(float(np.abs(values).max()), 1e-12)
    _show(axis, values, cmap=DIVERGING, vmin=-largest, vmax=largest)
    axis.set_title(f"{values.min():.2g} to {values.max():.2g}{uniform}".replace("-", "−"), **SMALL)


def _draw_curves(axis: Axes, row: str, level: LevelCapture, pixels: Sequence[tuple[float, float]]) -> None:
    """The strips, or the distributions of `pixels`, over the positions in the image above."""
    x = (np.arange(level.strip_max.shape[2]) + 0.5) / level.strip_max.shape[2]  # centers of the entries
    if row == "strips":
        names = ("m (maximum)", "a (average)" if level.query is None else "average")
        for strip, name, color in zip((level.strip_max, level.strip_avg), names, COLORS, strict=False):
            axis.plot(x, strip[0].square().mean(0).sqrt(), color=color, lw=1.3, label=name)
        if level.name == "apf1":
            axis.legend(fontsize=7.5, loc="lower left", handlelength=1.2, borderaxespad=0.2, ncols=2, columnspacing=1)
    else:
        h, w = level.size
        for i, (down, right) in enumerate(pixels):
            p = level.column_attention(min(int(down * h), h - 1), min(int(right * w), w - 1))[0].numpy()
            axis.plot(x, p, color=COLORS[i % 7], lw=1.3)
            axis.axvline(right if level.strip_axis == "height" else down, color=COLORS[i % 7], lw=0.9, ls=":")
            axis.plot(x[p.argmax()], p.max(), MARKERS[i % 7], color=COLORS[i % 7], ms=4)
    ends = ("left", "right") if level.strip_axis == "height" else ("top", "bottom")
    axis.set(xlim=(0, 1), ylim=(0, axis.get_ylim()[1] * 1.08))
    axis.set_xticks([0, 0.5, 1], [ends[0], "", ends[1]], fontsize=7.5)
    axis.get_xticklabels()[0].set_ha("left")
    axis.get_xticklabels()[2].set_ha("right")
    axis.yaxis.set_major_locator(plt.MaxNLocator(2))
    axis.yaxis.set_major_formatter("{x:.2g}")
    axis.tick_params(axis="y", labelsize=6.8)
