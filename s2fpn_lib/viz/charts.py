"""Charts: training curves, scores per class, confusion, cost, and accuracy against speed. Each returns a Figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from s2fpn_lib.data import Protocol
from s2fpn_lib.metrics import ConfusionMatrix
from s2fpn_lib.viz.style import COLORS, INK, MARKERS, MUTED, styled

# Panel title -> words; a metric is drawn in the first panel that has a word of its name
CURVE_PANELS = {
    "loss": ("loss",),
    "mIoU": ("miou",),
    "pixel accuracy": ("accuracy",),
    "learning rate": ("lr", "learning_rate"),
}


@styled
def training_curves(rows: Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Loss, mIoU, accuracy, and learning rate over epochs.

    Args:
        rows: the rows of one metrics.jsonl, or {run name: rows} to compare several runs. Each row has `epoch`.
            Metrics that belong to no panel are not drawn.

    Raises:
        ValueError: no run has a row.
    """
    runs = rows if isinstance(rows, Mapping) else {"": rows}
    frames = {name: pd.DataFrame(list(run)) for name, run in runs.items() if len(run)}
    if not frames:
        raise ValueError("no rows to draw: the run has not finished an epoch yet")
    panels: dict[str, list[str]] = {}
    for column in dict.fromkeys(c for frame in frames.values() for c in frame.columns):
        title = next((t for t, words in CURVE_PANELS.items() if any(w in column for w in words)), None)
        if title:
            panels.setdefault(title, []).append(column)
    titles = [title for title in CURVE_PANELS if title in panels]
    figure, axes = plt.subplots(1, len(titles), figsize=(3.9 * len(titles), 3.1), layout="constrained", squeeze=False)
    last = max(frame["epoch"].max() for frame in frames.values())
    for axis, title in zip(axes[0], titles, strict=True):
        for i, (name, frame) in enumerate(frames.items()):
            for j, column in enumerate(c for c in panels[title] if c in frame):
                series = frame[["epoch", column]].dropna()
                words = (name, column.replace("_", " ") if len(panels[title]) > 1 else "")
                axis.plot(
                    series["epoch"],
                    series[column],
                    color=COLORS[(i if len(frames) > 1 else j) % len(COLORS)],
                    linestyle=("-", "--", ":")[(j + i // len(COLORS)) % 3] if len(frames) > 1 else "-",
                    marker=MARKERS[j % len(MARKERS)] if len(series) < 15 else None,
                    markersize=4,
                    label=" ".join(filter(None, words)) or None,
                )
        axis.set(title=title, xlabel="epoch", xlim=(0.5, last + 0.5))
        axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axis.yaxis.set_major_formatter("{x:.4g}")
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    return figure


@styled
def per_class_bars(tables: pd.DataFrame | Mapping[str, pd.DataFrame], column: str = "iou") -> Figure:
    """Horizontal bars of one `Evaluation.per_class()` column in percent; several tables side by side per class."""
    named = {"": tables} if isinstance(tables, pd.DataFrame) else tables
    values = pd.DataFrame({name: 100 * table[column] for name, table in named.items()}, dtype=float)
    values = values.reindex(next(iter(named.values())).index)
    height = 0.7 + len(values) * max(0.26, 0.21 * len(named))
    figure, axis = plt.subplots(figsize=(7.2, height), layout="constrained")
    values.fillna(0).plot.barh(ax=axis, width=0.78, color=COLORS, legend=False, ylabel="")
    for bars, name in zip(axis.containers, values, strict=True):
        texts = ["does not occur" if np.isnan(value) else f"{value:.1f}" for value in values[name]]
        axis.bar_label(bars, texts, padding=3, fontsize=8 if len(named) == 1 else 7.2, color=INK)
    axis.invert_yaxis()
    axis.set(xlim=(0, 108), xlabel=f"{column.replace('_', ' ').replace('iou', 'IoU')} in %")
    axis.grid(axis="y", visible=False)
    if len(named) > 1:
        columns = max(1, min(4, 90 // (6 + max(map(len, named)))))  # as many as fit into the figure's width
        figure.legend(loc="outside lower center", ncols=columns, fontsize=8.5)
    return figure


def heatmap(axis: Axes, table: pd.DataFrame, **options: Any) -> None:
    """seaborn's heatmap of a labeled table with slanted column names; `options` are seaborn's."""
    sns.heatmap(table, ax=axis, annot_kws={"fontsize": 8}, **options)
    axis.grid(False)
    axis.tick_params(length=0)
    plt.setp(axis.get_xticklabels(), rotation=45, ha="right", rotation_mode="anchor")
    plt.setp(axis.get_yticklabels(), rotation=0)


@styled
def confusion_heatmap(confusion: ConfusionMatrix, classes: Sequence[str]) -> Figure:
    """Confusion matrix normalized by row: the percentage of each class's labeled pixels per predicted class."""
    counts = confusion.matrix.cpu().double().numpy()
    with np.errstate(invalid="ignore"):
        share = 100 * counts / counts.sum(1, keepdims=True)
    size = 2.2 + 0.5 * len(classes)
    figure, axis = plt.subplots(figsize=(size + 0.8, size), layout="constrained")
    heatmap(
        axis,
        pd.DataFrame(share, index=list(classes), columns=list(classes)),
        annot=np.where(np.isnan(share), "", np.where(share < 0.5, "·", np.char.mod("%.0f", share))),
        fmt="",
        cmap="Blues",
        vmin=0,
        vmax=100,
        square=True,
        linewidths=0.6,
        linecolor="white",
        cbar_kws={"label": "% of the class's labeled pixels", "shrink": 0.75},
    )
    axis.set(xlabel="prediction", ylabel="label", facecolor="#eef1f4")
    return figure


@styled
def class_shares_bars(shares: Mapping[str, Sequence[float]], protocol: Protocol) -> Figure:
    """Share of each class in the labeled pixels, log scale: bars for the first split, one marker per further split.

    shares: {split: one share in 0..1 per class}.
    """
    percent = pd.DataFrame({name: 100 * np.asarray(values, float) for name, values in shares.items()})
    first, *others = percent
    y = np.arange(protocol.num_classes)
    low = min(percent[percent > 0].min().min(), 100) / 2
    figure, axis = plt.subplots(figsize=(7.2, 0.9 + 0.27 * len(y)), layout="constrained")
    widths = (percent[first] - low).clip(lower=0)
    axis.barh(y, widths, left=low, height=0.7, color=np.array(protocol.palette) / 255, edgecolor=MUTED)
    for position, (value, rightmost) in enumerate(zip(percent[first], percent.max(axis=1), strict=True)):
        axis.text(max(low, rightmost) * 1.12, position, f"{value:.2g} %", va="center", fontsize=8)
    for i, name in enumerate(others, 1):
        axis.scatter(percent[name], y, marker=MARKERS[i], color=COLORS[i], zorder=3, s=28, label=name)
    axis.set(xscale="log", xlabel="% of the labeled pixels (log scale)", xlim=(low, 100))
    axis.set_yticks(y, protocol.classes)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    if others:
        axis.set_title(f"bars: {first}")
        axis.legend(loc="lower right", fontsize=8.5)
    return figure


@styled
def gmacs_by_part(parts: pd.DataFrame, title: str = "") -> Figure:
    """Bars of `macs_by_part` in 1e9 multiply-accumulates: one group per row (network part), one bar per column."""
    axis = parts.plot.bar(figsize=(9, 3.2), width=0.8, color=COLORS, rot=0, xlabel="", ylabel="GMACs", title=title)
    axis.grid(axis="x", visible=False)
    axis.figure.set_layout_engine("constrained")
    return axis.figure


@styled
def speed_growth(rows: pd.DataFrame) -> Figure:
    """Milliseconds against megapixels, one line per network, revision, backend, and precision.

    rows: of `benchmark.inference.measure_rows`, of one stage.
    """
    figure, axis = plt.subplots(figsize=(8.4, 4.6), layout="constrained")
    frame = rows.assign(megapixels=rows["batch"] * rows["height"] * rows["width"] / 1e6).sort_values("megapixels")
    for i, (key, line) in enumerate(frame.groupby(["network", "revision", "backend", "precision"], sort=False)):
        name = " ".join(word for word in key if word and word != "float32")
        line.plot("megapixels", "p50_ms", ax=axis, color=COLORS[i % 6], marker=MARKERS[i % 6], label=name)
    axis.set(xlabel="megapixels (all images of the batch)", ylabel="ms (median)", xlim=(0, None), ylim=(0, None))
    axis.legend(fontsize=8.5)
    return figure


@styled
def accuracy_speed(published: pd.DataFrame, ours: pd.DataFrame | None = None, *, dataset: str = "cityscapes") -> Figure:
    """mIoU against frames per second, one color and marker per device.

    Speeds on different devices and at different input sizes cannot be compared by position, so each point names its
    input.

    Args:
        published: rows of `load_published()`.
        ours: rows of `measured_points()`, drawn as stars, black for the first device.
        dataset: which published rows are drawn.

    Raises:
        ValueError: there is nothing to draw.
    """
    rows = published[(published["dataset"] == dataset) & published["fps"].notna() & published["miou_percent"].notna()]
    has_ours = ours is not None and len(ours) > 0
    if rows.empty and not has_ours:
        raise ValueError(f"no published row of {dataset!r} has both mIoU and speed")
    figure, axis = plt.subplots(figsize=(9.2, 5.4))
    points: list[tuple[float, float, str]] = []

    for i, (device, group) in enumerate(rows.groupby("device")):
        style = {"s": 46, "color": COLORS[i % 6], "marker": MARKERS[i % 6], "zorder": 3}
        axis.scatter(group["fps"], group["miou_percent"], label=device, **style)
        for row in group.drop_duplicates(["fps", "miou_percent", "model"]).itertuples():
            revision = f" {row.revision}" if isinstance(row.revision, str) and row.revision else ""
            repeated = ((rows["model"] == row.model) & (rows["revision"] == row.revision)).sum() > 1
            source = f" ({row.protocol})" if repeated else ""
            points.append((row.fps, row.miou_percent, f"{row.model}{revision}, {row.input}{source}"))
    for i, (device, group) in enumerate(ours.groupby("device") if has_ours else []):
        style = {"s": 130, "color": (INK, *COLORS)[i % len(COLORS)], "marker": "*", "zorder": 4}
        axis.scatter(group["fps"], group["miou_percent"], label=f"{device} (measured here)", **style)
        for row in group.itertuples():
            text = f"{row.model} {row.revision}, {row.split}, {row.input} ({row.method})"
            points.append((row.fps, row.miou_percent, text))
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter("{x:g}")
    axis.tick_params(axis="x", which="both", labelsize=8.5)
    axis.margins(x=0.14, y=0.12)
    speeds = f"frames per second{'' if has_ours else ' as published'} (log scale)"
    axis.set(xlabel=speeds, ylabel="mIoU in %", title=f"{dataset}: accuracy and speed")
    columns = 2 if has_ours else 4  # the name of a processor is long
    devices = len(axis.get_legend_handles_labels()[0])
    figure.legend(loc="lower center", ncols=columns, fontsize=8.5, title="device the speed was measured on")
    figure.subplots_adjust(left=0.075, right=0.985, top=0.93, bottom=0.18 + 0.036 * -(-devices // columns))
    _label_points(axis, points)
    return figure


def _label_points(axis: Axes, points: list[tuple[float, float, str]]) -> None:
    """Writes the text of each (x, y, text) where it covers no other text or point, with a thin line to the point.

    matplotlib places texts only where it is told to.
    """
    figure = axis.get_figure()
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    frame = axis.get_window_extent(renderer)
    dots = [axis.transData.transform(point[:2]) for point in points]
    directions = ((1, 0), (-1, 0), (0.8, 0.7), (0.8, -0.7), (-0.8, 0.7), (-0.8, -0.7), (0, 1), (0, -1))
    offsets = [(radius * c, radius * s) for radius in (9, 16, 24, 34, 46, 60, 78) for c, s in directions]
    line = {"arrowstyle": "-", "color": MUTED, "lw": 0.6, "shrinkA": 0, "shrinkB": 3}
    taken = []
    for (x, y, text), dot in sorted(zip(points, dots, strict=True), key=lambda pair: -pair[0][1]):
        note = axis.annotate(
            text, (x, y), (0, 0), textcoords="offset points", va="center", fontsize=7.6, arrowprops=line
        )
        for dx, dy in offsets:
            note.set(position=(dx, dy), ha="left" if dx > 2 else "right" if dx < -2 else "center")
            note.update_positions(renderer)
            box = plt.Text.get_window_extent(note, renderer).padded(2)  # of the text alone, without its line
            inside = frame.x0 < box.x0 and box.x1 < frame.x1 and frame.y0 < box.y0 and box.y1 < frame.y1
            free = not any(box.overlaps(other) for other in taken)
            if inside and free and not any(box.padded(3).contains(*other) for other in dots if other is not dot):
                break
        taken.append(box)
