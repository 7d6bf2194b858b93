"""Charts: training curves, scores per class, confusion, cost, and accuracy against speed."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from s2fpn_lib.data import Protocol
from s2fpn_lib.metrics import ConfusionMatrix
from s2fpn_lib.viz.style import COLORS, INK, MARKERS, MUTED, SHARE_CMAP, styled

# Title: part of the names of the metrics, and factor on their values
CURVE_PANELS = {"loss": ("loss", 1), "mIoU in %": ("miou", 100), "pixel accuracy in %": ("accuracy", 100)}
CURVE_PANELS |= {"learning rate": ("lr", 1), "wait for data in ms per step": ("data_s", 1000)}


@styled
def training_curves(rows: Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Loss, mIoU, accuracy, learning rate, and for one run the wait for data over epochs; other metrics are not drawn.

    rows: those of one metrics.jsonl, or {run name: rows} to compare several runs. Raises ValueError if no run has any.
    """
    runs = rows if isinstance(rows, Mapping) else {"": rows}
    frames = {name: pd.DataFrame(list(run)) for name, run in runs.items() if len(run)}
    if not frames:
        raise ValueError("no rows to draw: the run has not finished an epoch yet")
    several = len(frames) > 1
    metrics = list(dict.fromkeys(column for frame in frames.values() for column in frame.dropna(axis=1, how="all")))
    panels = {title: [metric for metric in metrics if word in metric] for title, (word, _) in CURVE_PANELS.items()}
    panels = {title: columns for title, columns in panels.items() if columns and not (several and "data_s" in columns)}
    wide = 2 if len(panels) == 4 else len(panels)
    high = len(panels) // wide
    size = (4.5 * min(wide, 2), 2.9 * high)
    figure, axes = plt.subplots(high, wide, figsize=size, layout="constrained", squeeze=False)
    last = max(frame["epoch"].max() for frame in frames.values())
    for axis, (title, columns) in zip(axes.flat, panels.items(), strict=True):
        for i, (name, frame) in enumerate(frames.items()):
            for j, column in enumerate(c for c in columns if c in frame):
                values = CURVE_PANELS[title][1] * frame.set_index("epoch")[column].dropna().astype(float)
                words = (name, column.replace("_", " ") if len(columns) > 1 else "")
                look = {"color": COLORS[(i if several else j) % len(COLORS)], "markersize": 4}
                look["linestyle"] = ("-", "--", ":")[(j + i // len(COLORS)) % 3] if several else "-"
                look["marker"] = MARKERS[j % len(MARKERS)] if len(values) < 15 else None
                axis.plot(values, label=" ".join(filter(None, words)) or None, **look)
        axis.set(title=title, xlabel="epoch", xlim=(0.5, last + 0.5))
        axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axis.yaxis.set_major_formatter("{x:.4g}")
        axis.set_ylim(bottom=0 if columns == ["data_s"] else None)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=9.5)
    return figure


def _class_bars(axis: Axes, values: pd.DataFrame, texts: pd.DataFrame, protocol: Protocol, left: float) -> list[Patch]:
    """A group of bars per row (class), one bar and text per column, from `left` on; returns the legend's handles."""
    handles, (rows, count) = [], values.shape
    for i, name in enumerate(values):
        alpha, colors = 1 - 0.6 * i / max(1, count - 1), np.array(protocol.palette) / 255
        look = {"left": left, "height": 0.76 / count, "color": colors, "alpha": alpha, "edgecolor": MUTED}
        places = np.arange(rows) + (i - (count - 1) / 2) * 0.84 / count
        bars = axis.barh(places, (values[name].fillna(left) - left).clip(lower=0), **look)
        axis.bar_label(bars, texts[name], padding=3, fontsize=9.5, color=INK)
        handles.append(Patch(fc=MUTED, alpha=alpha, label=name))
    axis.set_yticks(range(rows), values.index)
    axis.set_ylim(rows - 0.5, -0.5)
    axis.grid(axis="y", visible=False)
    return handles


@styled
def per_class_bars(tables: pd.DataFrame | Mapping[str, pd.DataFrame], protocol: Protocol) -> Figure:
    """Bars of the IoU per class in percent: of one `Evaluation.per_class()`, or of {name: table} to compare."""
    named = {"": tables} if isinstance(tables, pd.DataFrame) else tables
    values = pd.DataFrame({name: 100 * table["iou"] for name, table in named.items()}, dtype=float)
    values = values.reindex(next(iter(named.values())).index)
    texts = values.map(lambda value: "does not occur" if np.isnan(value) else f"{value:.1f}")
    height = 0.8 + len(values) * max(0.32, 0.24 * len(named))
    figure, axis = plt.subplots(figsize=(9, height), layout="constrained")
    handles = _class_bars(axis, values, texts, protocol, 0)
    axis.set(xlim=(0, 108), xlabel="IoU in %", ylabel="")
    if len(named) > 1:
        columns = max(1, min(4, 80 // (6 + max(map(len, named)))))  # as many as fit into the figure's width
        figure.legend(handles=handles, loc="outside lower center", ncols=columns)
    return figure


@styled
def confusion_heatmap(confusion: ConfusionMatrix, classes: Sequence[str]) -> Figure:
    """Confusion matrix normalized by row: the percentage of each class's labeled pixels per predicted class."""
    counts = pd.DataFrame(confusion.matrix.cpu().numpy(), list(classes), list(classes))
    share = 100 * counts.div(counts.sum(axis=1), axis=0)  # NaN for a class without labeled pixels
    cells = np.where(share.isna(), "", np.where(share < 0.5, "·", np.char.mod("%.0f", share)))
    size = 2.6 + 0.5 * len(classes)
    figure, axis = plt.subplots(figsize=(size + 0.8, size), layout="constrained")
    look = {"cmap": SHARE_CMAP, "vmin": 0, "vmax": 100, "square": True, "linewidths": 0.6, "linecolor": "white"}
    look["cbar_kws"] = {"label": "% of the class's labeled pixels", "shrink": 0.75}
    sns.heatmap(share, ax=axis, annot=cells, fmt="", annot_kws={"fontsize": 9.5}, **look)
    axis.grid(False)
    axis.tick_params(length=0)
    plt.setp(axis.get_xticklabels(), rotation=45, ha="right", rotation_mode="anchor")
    plt.setp(axis.get_yticklabels(), rotation=0)
    axis.set(xlabel="prediction", ylabel="label", facecolor="#eef1f4")
    return figure


@styled
def class_shares_bars(shares: Mapping[str, Sequence[float]], protocol: Protocol) -> Figure:
    """{split: share (0..1) of each class in the labeled pixels}, on a log scale, with the value beside each bar."""
    percent = 100 * pd.DataFrame(shares, dtype=float)
    percent.index = list(protocol.classes)
    low = np.nanmin([percent[percent > 0].min().min(), 100]) / 2  # the minimum is NaN where no pixel carries a class
    height = 1.2 + len(percent) * max(0.32, 0.24 * len(percent.columns))
    figure, axis = plt.subplots(figsize=(9, height), layout="constrained")
    texts = percent.map(lambda value: f"{value:.2g} %")
    handles = _class_bars(axis, percent, texts, protocol, low)
    axis.set(xscale="log", xlabel="% of the labeled pixels (log scale)", xlim=(low, 200))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter("")  # whose own labels are formulas
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure


@styled
def accuracy_speed(published: pd.DataFrame, ours: pd.DataFrame, *, dataset: str = "cityscapes") -> Figure:
    """mIoU against images per second: S²-FPN in blue, other networks in gray; each point names its input size.

    published: rows of `load_published()`, of which those of `dataset` are drawn with one marker per device. ours: rows
    of `measured_points()`, drawn as stars. Raises ValueError if there is nothing to draw.
    """
    devices = sorted(published["device"].dropna().unique())  # a device has the same marker in the chart of any dataset
    rows = published[(published["dataset"] == dataset) & published["fps"].notna() & published["miou_percent"].notna()]
    if rows.empty and ours.empty:
        raise ValueError(f"no published row of {dataset!r} has both mIoU and speed")
    rows = rows.assign(marker=rows["device"].map(dict(zip(devices, "os^vDPXdh<>", strict=False))).fillna("."))
    ours = ours.assign(device=ours["device"].astype(str) + " (measured here)", marker="*")
    points = pd.concat([rows, ours]) if len(ours) else rows
    names = points["model"] + (" " + points["revision"].fillna("")).str.rstrip()
    splits = (", " + points["split"]).where(points["marker"] == "*", "")
    method = points.reindex(columns=["method"])["method"].astype("string")
    trained = method.str.extract(r"(, trained on .* images)", expand=False).fillna("")  # the label says so, too
    points = points.assign(text=names + splits + ", " + points["input"] + trained)
    points["color"] = np.where(points["model"].str.lower().str.startswith(("s2-fpn", "s2fpn")), COLORS[0], MUTED)
    figure, axis = plt.subplots(figsize=(10, 6.6), layout="constrained")
    for (device, marker), group in points.groupby(["device", "marker"]):
        size = 260 if marker == "*" else 60
        axis.scatter(group["fps"], group["miou_percent"], s=size, c=group["color"], marker=marker, zorder=3)
        axis.plot([], [], marker, color=MUTED, markersize=12 if marker == "*" else 7, label=device)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter("{x:g}")
    axis.xaxis.get_minor_locator().set_params(subs=(2, 3, 5))
    axis.margins(x=0.14, y=0.12)
    axis.set(xlabel="images per second (log scale)", ylabel="mIoU in %")
    axis.legend(handles=[Patch(fc=COLORS[0], label="S²-FPN"), Patch(fc=MUTED, label="other networks")])
    figure.legend(loc="outside lower center", title="device the speed was measured on", ncols=3, fontsize=10)
    labels = points.drop_duplicates(["model", "revision", "fps", "device"])[["fps", "miou_percent", "text"]]
    _label_points(axis, list(labels.itertuples(index=False)))
    return figure


def _label_points(axis: Axes, points: list[tuple[float, float, str]]) -> None:
    """Writes each (x, y, text) where it covers no other text or point, which matplotlib does not do."""
    figure = axis.get_figure()
    figure.canvas.draw()
    figure.set_layout_engine("none")  # the layout is final: the places below are for these axes
    renderer = figure.canvas.get_renderer()
    frame = axis.get_window_extent(renderer)
    dots = axis.transData.transform([point[:2] for point in points])
    directions = ((1, 0), (-1, 0), (0.8, 0.7), (0.8, -0.7), (-0.8, 0.7), (-0.8, -0.7), (0, 1), (0, -1))
    offsets = [(radius * c, radius * s) for radius in (9, 16, 24, 34, 46, 60, 78) for c, s in directions]
    line = {"arrowstyle": "-", "color": MUTED, "lw": 0.6, "shrinkA": 0, "shrinkB": 3}
    look = {"textcoords": "offset points", "va": "center", "fontsize": 9, "arrowprops": line}
    taken = []
    for i in np.argsort(-dots[:, 1], kind="stable"):
        x, y, text = points[i]
        note = axis.annotate(text, (x, y), (0, 0), **look)
        others = np.delete(dots, i, axis=0)
        for dx, dy in offsets:
            note.set(position=(dx, dy), ha="left" if dx > 2 else "right" if dx < -2 else "center")
            note.update_positions(renderer)
            box = plt.Text.get_window_extent(note, renderer).padded(2)  # of the text alone, without its line
            inside = frame.count_contains(box.corners()) == 4
            if inside and not box.count_overlaps(taken) and not box.padded(3).count_contains(others):
                break
        taken.append(box)
