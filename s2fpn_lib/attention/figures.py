"""Pictures of a recorded forward pass, all levels side by side, for notebooks and papers."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from s2fpn_lib.attention.recorder import Capture, LevelCapture
from s2fpn_lib.attention.statistics import AttentionStatistics, coarse_share
from s2fpn_lib.data import Protocol
from s2fpn_lib.metrics import class_ids
from s2fpn_lib.runs import write_atomic
from s2fpn_lib.viz.images import as_picture, colorize, legend_patches
from s2fpn_lib.viz.style import BAD, COLORS, INK, MARKERS, MUTED, picture_axes, styled

DIVERGING = "RdBu_r"  # red above 0, blue below: apart for every kind of colour vision
SEQUENTIAL = "viridis"
# (y, x) in 0..1 of the pixels whose attention over the columns is drawn
PIXELS = ((0.60, 0.20), (0.45, 0.50), (0.75, 0.80))
# Names of the rows; the second line says what is drawn
ROWS = {
    "auxiliary": "auxiliary\nprediction",
    "gate1": "gate 1\n(weighs {first})",
    "gate2": "gate 2\n(weighs m)",
    "strips": "strips,\nRMS over C",
    "columns": "attention\nover {entries}s",
    "gfu": "share from the\ncoarser level",
}
LEFT, GAP, TITLE = 1.1, 0.36, 0.27  # inches: room for row names, between cells, above each row


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
    width: float = 11.0,
) -> Figure:
    """One image of a recorded batch; under it what each level's auxiliary head, gates, strips and GFU make of it.

    Gates are drawn red above 0 and blue below, full colour at the largest magnitude of the map; their range is printed.

    image: (3, H, W) uint8, as the network saw it. label: (H, W) ids, drawn beside the prediction. pixels: (y, x) in
    0..1 whose distribution over the columns is drawn (v2 only). warning: drawn in red above everything.
    """
    rows = _rows_of(capture)
    cell = (width - LEFT - 3 * GAP - 0.1) / 4
    picture = cell * image.shape[-2] / image.shape[-1]
    flat = {"strips", "columns"} | ({"gate1", "gate2"} if capture.revision == "v1" else set())
    heights = [picture, *(0.42 * cell if row in flat else picture for row in rows)]
    extra = [0.2 if row in ("strips", "columns") else 0 for row in ("", *rows)]  # tick labels below
    warning = textwrap.fill(warning, 110)
    head = 0.05 + (0.1 + 0.16 * len(warning.splitlines()) if warning else 0)
    total = head + sum(heights) + sum(extra) + TITLE * len(heights) + 0.6
    figure = plt.figure(figsize=(width, total))

    def place(column: int, top: float, height: float) -> Axes:
        left = LEFT + column * (cell + GAP)
        return figure.add_axes([left / width, (total - top - height) / total, cell / width, height / total])

    if warning:
        figure.text(0.5, 1 - 0.08 / total, warning, color=BAD, weight="bold", ha="center", va="top", fontsize=9)
    top = head + TITLE
    drawn = pixels if "columns" in rows else ()
    _top_row([place(column, top, picture) for column in range(4)], image, capture, protocol, index, label, drawn)
    top += heights[0]
    for row, height, below in zip(rows, heights[1:], extra[1:], strict=True):
        top += TITLE
        first, entries = ("a" if capture.revision == "v1" else "q"), _entries(capture)
        name = ROWS[row].format(first=first, entries=entries)
        figure.text(0.1 / width, 1 - (top + height / 2) / total, name, va="center", fontsize=8.8, color=INK)
        for column in range(4):
            axis = place(column, top, height)
            _draw(axis, row, capture, column, index, protocol, pixels)
            if row == rows[0]:
                _title_level(axis, capture.levels[column], index)
        top += height + below
    figure.legend(handles=legend_patches(protocol, ignored=False), ncols=8, loc="lower center", fontsize=8.5)
    return figure


@styled
def crb_figure(statistics: AttentionStatistics, capture: Capture, *, index: int = 0) -> Figure:
    """CRB: one image's channel weights, sorted, and what passes in the regions of each class, over the split."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.4), layout="constrained", width_ratios=[1, 1.7])
    for i, level in enumerate(capture.levels):
        if level.crb is not None:
            weights = np.sort(level.crb[index].cpu().numpy())[::-1]
            left.plot(
                np.linspace(0, 100, len(weights)), weights, label=f"{level.name} ({len(weights)})", color=COLORS[i]
            )
    left.axhline(0.5, color=MUTED, lw=0.8, ls=":")
    left.set(title="channel weights of one image, sorted", xlabel="% of the channels", ylabel="weight", ylim=(0, 1))
    left.legend(fontsize=8.5, title="level (channels)")
    table = statistics.crb_by_class
    spread = max(0.02, float(np.nanmax(np.abs(table.to_numpy() - 0.5)))) if table.size else 0.5
    sns.heatmap(
        table, ax=right, cmap=DIVERGING, center=0.5, vmin=0.5 - spread, vmax=0.5 + spread, annot=True, fmt=".2f",
        annot_kws={"fontsize": 8}, linewidths=0.5, cbar=False,
    )  # fmt: skip
    right.grid(False)
    right.set_title("mean weight in the regions of a class, by activation")
    right.tick_params(length=0)
    plt.setp(right.get_xticklabels(), rotation=40, ha="right", rotation_mode="anchor")
    plt.setp(right.get_yticklabels(), rotation=0)
    return figure


@styled
def statistics_figure(statistics: AttentionStatistics) -> Figure:
    """A split's statistics, one point an image, levels side by side: influence, then sharpness and reach."""
    panels = {
        "attended_share": "share of the strips in the blend",
        "entropy": "entropy of P (1: even)",
        "reach": "reach of P (image widths)",
        "gate1_concentration": "concentration of gate 1 (0: even)",
        "gate2_concentration": "concentration of gate 2 (0: even)",
        "crb_std": "spread of the CRB weights",
    }
    images = statistics.images
    panels = {column: title for column, title in panels.items() if column in images and images[column].notna().any()}
    if not panels:
        raise ValueError("nothing to draw: this network has neither strip attention nor CRB")
    figure, axes = plt.subplots(1, len(panels), figsize=(2.75 * len(panels), 3.0), layout="constrained", squeeze=False)
    for axis, (column, title) in zip(axes[0], panels.items(), strict=True):
        names = list(dict.fromkeys(images["level"]))
        for i, name in enumerate(names):
            values = images.loc[images["level"] == name, column].dropna().to_numpy(float)
            x = i + np.linspace(-0.22, 0.22, len(values)) if len(values) > 1 else [i]
            axis.scatter(x, values, s=14, color=COLORS[i], alpha=0.65, marker=MARKERS[i], linewidths=0)
            if len(values):
                axis.hlines(values.mean(), i - 0.34, i + 0.34, color=INK, lw=1.4)
        axis.set_xticks(range(len(names)), names)
        axis.set_xlim(-0.6, len(names) - 0.4)
        axis.set_title(title, fontsize=9)
        axis.grid(axis="x", visible=False)
        if column in ("entropy", "reach"):
            axis.axhline(1 if column == "entropy" else 1 / 3, color=MUTED, lw=0.9, ls=":")
        axis.set_ylim(bottom=0)
    return figure


def save_figure(figure: Figure, path: str | Path, *, dpi: int = 150) -> list[Path]:
    """Writes `path`.pdf (vector text and lines, fonts embedded as such) and `path`.png; equal figures, equal bytes."""
    written = []
    for suffix, metadata in ((".pdf", {"CreationDate": None}), (".png", {})):
        target = Path(f"{path}{suffix}")
        buffer = io.BytesIO()
        with plt.rc_context({"pdf.fonttype": 42}):
            figure.savefig(buffer, format=suffix[1:], dpi=dpi, metadata=metadata)
        write_atomic(target, buffer.getvalue())
        written.append(target)
    return written


def _rows_of(capture: Capture) -> list[str]:
    levels = capture.levels
    present = {
        "auxiliary": any(level.auxiliary is not None for level in levels),
        "gate1": any(level.gates is not None for level in levels),
        "gate2": any(level.gates is not None for level in levels),
        "strips": any(level.gates is not None for level in levels),
        "columns": any(level.query is not None for level in levels),
        "gfu": capture.gfu is not None,
    }
    return [row for row in ROWS if present[row]]


def _entries(capture: Capture) -> str:
    """What the entries of a strip are: columns or rows of the image."""
    return "row" if any(level.strip_axis == "width" for level in capture.levels) else "column"


def _title_level(axis: Axes, level: LevelCapture, index: int) -> None:
    facts = f"{level.size[0]}x{level.size[1]}"
    if level.gamma is not None:
        facts += f", γ {level.gamma:.3f}, strips {level.attended_share[index]:.1%}".replace("-", "−")
    axis.set_title(level.name)
    axis.set_title(facts, loc="right", **_SMALL)


def _top_row(
    axes: list[Axes],
    image: Tensor,
    capture: Capture,
    protocol: Protocol,
    index: int,
    label: Tensor | None,
    pixels: Sequence[tuple[float, float]],
) -> None:
    prediction = class_ids(capture.logits[index : index + 1])[0]
    pictures = {"image": as_picture(image), "prediction": colorize(prediction, protocol)}
    if label is not None:
        pictures["label"] = colorize(label, protocol)
    for axis, (title, picture) in zip(axes, pictures.items(), strict=False):
        axis.imshow(picture, aspect="auto", extent=(0, 1, 1, 0))
        axis.set_title(title)
    for axis in axes:
        picture_axes(axis)
    for i, (y, x) in enumerate(pixels):
        axes[0].plot(x, y, MARKERS[i % 7], color=COLORS[i % 7], ms=9, mec="white", mew=1.4, label=f"pixel {i + 1}")
    for axis in axes[len(pictures) :]:
        axis.set_facecolor("none")
    if any(level.gates is not None for level in capture.levels):
        note = f"revision {capture.revision}\n" + _NOTES[capture.revision].format(entry=_entries(capture)) + _BLEND
        axes[-1].text(0, 1, note, va="top", fontsize=7.2, color=MUTED)


_NOTES = {
    "v1": "Two gates a {entry} weigh the average\nstrip a and the maximum strip m. They are\n"
    "softmax over C channels: 1/C is even.",
    "v2": "Every pixel attends over the {entry}s; the\nresult gives two gates a pixel, which weigh\n"
    "its query q and the maximum strip m.",
}
_BLEND = "\n\nγ blends the strips in. “strips” is their share\nof the blend: below 1 % they hardly matter."


def _draw(
    axis: Axes,
    row: str,
    capture: Capture,
    column: int,
    index: int,
    protocol: Protocol,
    pixels: Sequence[tuple[float, float]],
) -> None:
    level = capture.levels[column]
    extent = (0, 1, 1, 0)
    if row == "gfu":
        share = coarse_share(capture.gfu[column])[index].cpu().numpy()
        axis.imshow(share, cmap=SEQUENTIAL, vmin=0, vmax=1, aspect="auto", extent=extent)
        axis.set_title(f"{capture.gfu[column].name}: {share.min():.2f} to {share.max():.2f}", **_SMALL)
        picture_axes(axis)
    elif row == "auxiliary":
        ids = class_ids(level.auxiliary[index : index + 1])[0]
        axis.imshow(colorize(ids, protocol), aspect="auto", extent=extent)
        picture_axes(axis)
    elif level.gates is None:
        axis.text(0.5, 0.5, "off", ha="center", va="center", color=MUTED)
        picture_axes(axis)
    elif row in ("gate1", "gate2"):
        _draw_gate(axis, level, index, 0 if row == "gate1" else 1)
    elif row == "strips":
        _draw_strips(axis, level, index, first=column == 0)
    else:
        _draw_columns(axis, level, index, pixels)


_SMALL = {"fontsize": 8.2, "fontweight": "normal", "color": MUTED, "pad": 3}


def _draw_gate(axis: Axes, level: LevelCapture, index: int, gate: int) -> None:
    values = level.gates[index, gate].cpu().numpy()  # (h, w) in v2, (L,) in v1
    even = f", even {1 / level.strip_max.shape[1]:.3f}" if values.ndim == 1 else ""
    if values.ndim == 1:
        values = values[None, :] if level.strip_axis == "height" else values[:, None]
    largest = max(float(np.abs(values).max()), 1e-12)
    axis.imshow(values, cmap=DIVERGING, vmin=-largest, vmax=largest, aspect="auto", extent=(0, 1, 1, 0))
    axis.set_title(f"{values.min():.2g} to {values.max():.2g}{even}".replace("-", "−"), **_SMALL)
    picture_axes(axis)


def _draw_strips(axis: Axes, level: LevelCapture, index: int, *, first: bool) -> None:
    names = ("m (maximum)", "a (average)" if level.query is None else "average")
    for strip, name, color in zip((level.strip_max, level.strip_avg), names, COLORS, strict=False):
        rms = strip[index].square().mean(0).sqrt().cpu().numpy()  # (L,)
        axis.plot((np.arange(len(rms)) + 0.5) / len(rms), rms, color=color, lw=1.3, label=name)
    _profile_axes(axis, level)
    if first:
        axis.legend(fontsize=7.5, loc="lower left", handlelength=1.2, borderaxespad=0.2, ncols=2, columnspacing=1)


def _draw_columns(axis: Axes, level: LevelCapture, index: int, pixels: Sequence[tuple[float, float]]) -> None:
    h, w = level.size
    for i, (y, x) in enumerate(pixels):
        own = min(int(y * h), h - 1), min(int(x * w), w - 1)
        p = level.column_attention(*own)[index].cpu().numpy()
        position = (np.arange(len(p)) + 0.5) / len(p)
        color = COLORS[i % 7]
        axis.plot(position, p, color=color, lw=1.3)
        axis.axvline(x if level.strip_axis == "height" else y, color=color, lw=0.9, ls=":")
        axis.plot(position[p.argmax()], p.max(), MARKERS[i % 7], color=color, ms=4)
    _profile_axes(axis, level)


def _profile_axes(axis: Axes, level: LevelCapture) -> None:
    """Positions along the strip under the image's own axis, so that what stands below a thing belongs to it."""
    ends = ("left", "right") if level.strip_axis == "height" else ("top", "bottom")
    axis.set(xlim=(0, 1))
    axis.set_ylim(0, axis.get_ylim()[1] * 1.08)
    axis.set_xticks([0, 0.5, 1], [ends[0], "", ends[1]], fontsize=7.5)
    axis.get_xticklabels()[0].set_ha("left")
    axis.get_xticklabels()[2].set_ha("right")
    axis.yaxis.set_major_locator(plt.MaxNLocator(2))
    axis.yaxis.set_major_formatter("{x:.2g}")
    axis.tick_params(axis="y", labelsize=6.8)
