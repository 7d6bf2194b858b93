"""Charts: training curves, scores per class, confusion, accuracy against speed. Pure functions that return a Figure."""

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

# Panel title -> words that a metric's name must hold one of; the first panel that takes a metric keeps it.
CURVE_PANELS = {
    "loss": ("loss",),
    "mIoU": ("miou",),
    "pixel accuracy": ("accuracy",),
    "learning rate": ("lr", "learning_rate"),
    "seconds": ("seconds", "time"),
}


@styled
def training_curves(rows: Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Loss, mIoU, accuracy and learning rate over epochs.

    rows: the rows of one metrics.jsonl, or {run name: rows} to lay several runs over each other. Every row has
    `epoch`; other numbers are drawn in the panel that their name belongs to, and left out where none does.
    """
    runs = {"": rows} if not isinstance(rows, Mapping) else dict(rows)
    frames = {name: pd.DataFrame(list(run)) for name, run in runs.items() if len(run)}
    if not frames:
        raise ValueError("no rows to draw: the run has not finished an epoch yet")
    panels: dict[str, list[str]] = {}
    for column in dict.fromkeys(c for frame in frames.values() for c in frame.columns):
        title = next((t for t, words in CURVE_PANELS.items() if any(w in column for w in words)), None)
        if title and title != "seconds":
            panels.setdefault(title, []).append(column)
    panels = {title: panels[title] for title in CURVE_PANELS if title in panels}
    figure, axes = plt.subplots(1, len(panels), figsize=(3.9 * len(panels), 3.1), layout="constrained", squeeze=False)
    for axis, (title, columns) in zip(axes[0], panels.items(), strict=True):
        for i, (name, frame) in enumerate(frames.items()):
            for j, column in enumerate(c for c in columns if c in frame):
                series = frame[["epoch", column]].dropna()
                label = " ".join(part for part in (name, column.replace("_", " ") if len(columns) > 1 else "") if part)
                axis.plot(
                    series["epoch"],
                    series[column],
                    color=COLORS[(i if len(frames) > 1 else j) % len(COLORS)],
                    linestyle=("-", "--", ":")[(j + i // len(COLORS)) % 3] if len(frames) > 1 else "-",
                    marker=MARKERS[j % len(MARKERS)] if len(series) < 15 else None,
                    markersize=4,
                    label=label or None,
                )
        axis.set(title=title, xlabel="epoch")
        last = max(frame["epoch"].max() for frame in frames.values())
        axis.set_xlim(0.5, last + 0.5)
        axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axis.yaxis.set_major_formatter("{x:.4g}")
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    return figure


@styled
def per_class_bars(tables: pd.DataFrame | Mapping[str, pd.DataFrame], column: str = "iou") -> Figure:
    """Horizontal bars of one `Evaluation.per_class()` column, in percent; several tables side by side in each class."""
    named = {"": tables} if isinstance(tables, pd.DataFrame) else dict(tables)
    classes = list(next(iter(named.values())).index)
    bar = 0.78 / len(named)
    figure, axis = plt.subplots(figsize=(7.2, 0.7 + len(classes) * max(0.26, 0.21 * len(named))), layout="constrained")
    for i, (name, table) in enumerate(named.items()):
        values = 100 * table[column].reindex(classes).to_numpy(float)
        y = np.arange(len(classes)) + (i - (len(named) - 1) / 2) * bar
        axis.barh(y, np.nan_to_num(values), height=bar * 0.92, color=COLORS[i % len(COLORS)], label=name or None)
        for position, value in zip(y, values, strict=True):
            text = "does not occur" if np.isnan(value) else f"{value:.1f}"
            axis.text(
                np.nan_to_num(value) + 0.8, position, text, va="center", fontsize=8 if bar > 0.5 else 7.2, color=INK
            )
    axis.set_yticks(range(len(classes)), classes)
    axis.invert_yaxis()
    axis.set(xlim=(0, 108), xlabel=f"{column.replace('_', ' ').replace('iou', 'IoU')} in %")
    axis.grid(axis="y", visible=False)
    if len(named) > 1:
        columns = max(1, min(4, 90 // (6 + max(map(len, named)))))  # as many as fit into the figure's width
        figure.legend(loc="outside lower center", ncols=columns, fontsize=8.5)
    return figure


@styled
def confusion_heatmap(confusion: ConfusionMatrix, classes: Sequence[str]) -> Figure:
    """Row-normalised confusion matrix: of each class's labelled pixels, the percentage given to each prediction."""
    counts = confusion.matrix.cpu().double().numpy()
    with np.errstate(invalid="ignore"):
        share = 100 * counts / counts.sum(1, keepdims=True)
    size = 2.2 + 0.5 * len(classes)
    figure, axis = plt.subplots(figsize=(size + 0.8, size), layout="constrained")
    texts = np.where(np.isnan(share), "", np.where(share < 0.5, "·", np.char.mod("%.0f", share)))
    sns.heatmap(
        pd.DataFrame(share, index=list(classes), columns=list(classes)),
        ax=axis,
        annot=texts,
        fmt="",
        cmap="Blues",
        vmin=0,
        vmax=100,
        square=True,
        linewidths=0.6,
        linecolor="white",
        annot_kws={"fontsize": 8},
        cbar_kws={"label": "% of the class's labelled pixels", "shrink": 0.75},
    )
    axis.grid(False)
    axis.set(xlabel="prediction", ylabel="label")
    axis.set_facecolor("#eef1f4")
    axis.tick_params(length=0)
    plt.setp(axis.get_xticklabels(), rotation=45, ha="right", rotation_mode="anchor")
    plt.setp(axis.get_yticklabels(), rotation=0)
    return figure


@styled
def class_shares_bars(shares: Sequence[float] | Mapping[str, Sequence[float]], protocol: Protocol) -> Figure:
    """Share of each class in the labelled pixels, log scale; {split: shares} draws one marker a split."""
    named = {"": shares} if not isinstance(shares, Mapping) else dict(shares)
    y = np.arange(protocol.num_classes)
    figure, axis = plt.subplots(figsize=(7.2, 0.9 + 0.27 * len(y)), layout="constrained")
    first = 100 * np.asarray(next(iter(named.values())), float)
    low = min((v for s in named.values() for v in 100 * np.asarray(s, float) if v > 0), default=0.1) / 2
    axis.barh(
        y, np.maximum(first - low, 0), left=low, height=0.7, color=np.array(protocol.palette) / 255, edgecolor=MUTED
    )
    for position, value in zip(y, first, strict=True):
        rightmost = max(low, *(100 * named[name][position] for name in named))
        axis.text(rightmost * 1.12, position, f"{value:.2g} %", va="center", fontsize=8)
    for i, (name, values) in enumerate(list(named.items())[1:], 1):
        axis.scatter(100 * np.asarray(values), y, marker=MARKERS[i], color=COLORS[i], zorder=3, s=28, label=name)
    axis.set_xscale("log")
    axis.set(xlabel="% of the labelled pixels (log scale)", xlim=(low, 100))
    axis.set_yticks(y, protocol.classes)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    if len(named) > 1:
        axis.set_title(f"bars: {next(iter(named))}")
        axis.legend(loc="lower right", fontsize=8.5)
    return figure


@styled
def gmacs_by_part(parts: pd.DataFrame, title: str = "") -> Figure:
    """Bars of `macs_by_part` in 1e9 multiply-accumulates: a group a row (part of the network), a bar a column."""
    x, bar = np.arange(len(parts)), 0.8 / len(parts.columns)
    figure, axis = plt.subplots(figsize=(9, 3.2), layout="constrained")
    for i, (name, column) in enumerate(parts.items()):
        centers = x + (i - (len(parts.columns) - 1) / 2) * bar
        axis.bar(centers, column, width=bar * 0.92, color=COLORS[i % len(COLORS)], label=name)
    axis.set(ylabel="GMACs", title=title)
    axis.set_xticks(x, parts.index)
    axis.grid(axis="x", visible=False)
    axis.legend()
    return figure


@styled
def speed_growth(rows: pd.DataFrame) -> Figure:
    """Milliseconds against megapixels, one line a network, revision, backend and precision.

    rows: of `speed.measure_rows`, of one stage.
    """
    figure, axis = plt.subplots(figsize=(8.4, 4.6), layout="constrained")
    frame = rows.assign(megapixels=rows["batch"] * rows["height"] * rows["width"] / 1e6)
    for i, (key, line) in enumerate(frame.groupby(["network", "revision", "backend", "precision"], sort=False)):
        line = line.sort_values("megapixels")
        name = " ".join(word for word in key if word and word != "float32")
        axis.plot(
            line["megapixels"], line["p50_ms"], color=COLORS[i % 6], marker=MARKERS[i % 6], linestyle="-", label=name
        )
    axis.set(xlabel="megapixels (all images of the batch)", ylabel="ms (median)", xlim=(0, None), ylim=(0, None))
    axis.legend(fontsize=8.5)
    return figure


@styled
def accuracy_speed(
    published: pd.DataFrame,
    ours: pd.DataFrame | None = None,
    *,
    dataset: str = "cityscapes",
    protocol: str | None = None,
) -> Figure:
    """mIoU against frames per second, one colour and marker a device.

    published: rows of `tables.load_published()`; ours (optional): rows of `own_points.own_points`, drawn as stars,
    black for the first device and then in the palette's colours.
    dataset, protocol: which published rows (protocol None: all of the dataset). Speeds on different devices and sizes
    cannot be compared by position, which is why each point names its input.
    """
    rows = published[(published["dataset"] == dataset) & published["fps"].notna() & published["miou_percent"].notna()]
    if protocol is not None:
        rows = rows[rows["protocol"] == protocol]
    has_ours = ours is not None and len(ours) > 0
    if rows.empty and not has_ours:
        raise ValueError(f"no published row of {dataset!r} (protocol {protocol!r}) has both mIoU and speed")
    figure, axis = plt.subplots(figsize=(9.2, 5.4))
    points: list[tuple[float, float, str]] = []
    for i, (device, group) in enumerate(rows.groupby("device", sort=True)):
        axis.scatter(
            group["fps"],
            group["miou_percent"],
            s=46,
            color=COLORS[i % 6],
            marker=MARKERS[i % 6],
            label=device,
            zorder=3,
        )
        for row in group.drop_duplicates(["fps", "miou_percent", "model"]).itertuples():
            revision = f" {row.revision}" if isinstance(row.revision, str) and row.revision else ""
            twice = ((rows["model"] == row.model) & (rows["revision"] == row.revision)).sum() > 1
            source = f" ({row.protocol})" if twice else ""
            points.append((row.fps, row.miou_percent, f"{row.model}{revision}, {row.input}{source}"))
    for i, (device, group) in enumerate(ours.groupby("device", sort=True) if has_ours else []):
        axis.scatter(
            group["fps"],
            group["miou_percent"],
            s=130,
            color=(INK, *COLORS)[i % len(COLORS)],
            marker="*",
            label=f"{device} (measured here)",
            zorder=4,
        )
        for row in group.itertuples():
            text = f"{row.model} {row.revision}, {row.split}, {row.input} ({row.way})"
            points.append((row.fps, row.miou_percent, text))
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter("{x:g}")
    axis.tick_params(axis="x", which="both", labelsize=8.5)
    axis.margins(x=0.14, y=0.12)
    speeds = f"frames per second{'' if has_ours else ' as published'} (log scale)"
    axis.set(xlabel=speeds, ylabel="mIoU in %", title=f"{dataset}: accuracy and speed")
    columns = 2 if has_ours else 4  # a processor's name is long
    devices = len(axis.get_legend_handles_labels()[0])
    figure.legend(loc="lower center", ncols=columns, fontsize=8.5, title="device the speed was measured on")
    figure.subplots_adjust(left=0.075, right=0.985, top=0.93, bottom=0.18 + 0.036 * -(-devices // columns))
    _label_points(axis, points)
    return figure


def _label_points(axis: Axes, points: list[tuple[float, float, str]]) -> None:
    """Writes each point's text where it covers neither another text nor a point, with a thin line where it is moved."""
    figure = axis.get_figure()
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    frame = axis.get_window_extent(renderer)
    dots = [axis.transData.transform(point[:2]) for point in points]
    taken = []
    offsets = [(radius * c, radius * s) for radius in (9, 16, 24, 34, 46, 60, 78) for c, s in _DIRECTIONS]
    for (x, y, text), dot in sorted(zip(points, dots, strict=True), key=lambda pair: -pair[0][1]):
        note = axis.annotate(
            text,
            (x, y),
            (0, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.6,
            arrowprops={"arrowstyle": "-", "color": MUTED, "lw": 0.6, "shrinkA": 0, "shrinkB": 3},
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


_DIRECTIONS = ((1, 0), (-1, 0), (0.8, 0.7), (0.8, -0.7), (-0.8, 0.7), (-0.8, -0.7), (0, 1), (0, -1))
