"""Figures of a recorded forward pass and of attributions, all levels side by side, for notebooks and papers."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Tensor

from s2fpn_lib.attention.recorder import Capture, LevelCapture
from s2fpn_lib.attention.statistics import coarse_share
from s2fpn_lib.data import Protocol
from s2fpn_lib.metrics import class_ids
from s2fpn_lib.viz import style
from s2fpn_lib.viz.images import as_array, colorize, legend_patches

WIDTH = 11.0  # inches
BAND = 0.14  # height of the band that shows the pure colors of the scale, as a share of the image's
SMALL: dict[str, Any] = {"fontsize": 9.5, "fontweight": "normal", "color": style.MUTED, "pad": 3}
Pixels = Sequence[Sequence[float]]  # (y, x) of each


@style.styled
def attention_figure(
    image: Tensor, capture: Capture, protocol: Protocol, index: int, label: Tensor | None, pixels: Pixels
) -> Figure:
    """One image of a recorded batch; below it what each level attends to, its auxiliary prediction, and its GFU share.

    v2: one row per pixel with its weights of the columns relative to uniform attention. v1: one row with the average
    minus the maximum gate of each column. image: (3, H, W) uint8; index: its place in the batch; label: its (H, W) ids,
    if known; pixels: (y, x) in 0..1 (v2 only).
    """
    levels = [level.of_image(index) for level in capture.levels]
    rows, aspect = _rows(capture, levels, index, pixels), image.shape[-2] / image.shape[-1]
    size = (WIDTH, ((WIDTH - 2.2) / 4 * aspect + 0.26) * (1 + len(rows)) + 0.9)
    figure, axes = plt.subplots(1 + len(rows), 4, figsize=size, squeeze=False, layout="constrained")
    images = {"image": as_array(image), "prediction": colorize(class_ids(capture.logits)[index], protocol)}
    if label is not None:
        images["label"] = colorize(label, protocol)
    for axis, (title, shown) in zip(axes[0], images.items(), strict=False):
        _show(axis, shown)
        axis.set_title(title)
    for axis in axes[0, len(images) :]:
        axis.set_axis_off()
    offset = {"xycoords": "axes fraction", "xytext": (-8, 0), "textcoords": "offset points"}
    gray, bars = as_array(image).mean(-1), {}
    for row_axes, (title, (kind, values)) in zip(axes[1:], rows.items(), strict=True):
        row_axes[0].annotate(title, (0, 0.5), ha="right", va="center", fontsize=10, color=style.INK, **offset)
        cmap, norm = style.ATTENTION_CMAP, LogNorm(*style.ATTENTION_RANGE, clip=True)  # shared by all levels
        if kind == "gates":
            cmap, norm = style.GATE_CMAP, CenteredNorm(0, max(float(np.abs(each).max()) for each in values))
        for axis, level, each in zip(row_axes, levels, values, strict=True):
            if kind == "classes":
                _show(axis, colorize(each, protocol))
            elif kind == "share":
                drawn = _show(axis, each, cmap=style.SHARE_CMAP, vmin=0, vmax=1)
                axis.set_title(f"share {each.min():.2f} to {each.max():.2f}", **SMALL)
            else:
                drawn = _show_strip(axis, gray, each, level, cmap, norm)
        if kind != "classes":
            bars.setdefault(kind, (drawn, []))[1].extend(row_axes)
    for i, (y, x) in enumerate(pixels if levels[0].query is not None else ()):
        for axis in (axes[0, 0], *axes[1 + i]):
            axis.plot(x, y, style.MARKERS[i % 7], color=style.COLORS[i % 7], ms=7, mec="white", mew=1.2)
    for axis, level in zip(axes[1] if rows else (), levels, strict=False):
        facts = f"{level.name.replace('apf', 'APF ')}, {level.size[0]}x{level.size[1]}"
        if level.gamma is not None:
            facts += f"\nγ {level.gamma:.3f}, strips {level.attended_share.item():.1%}".replace("-", "−")
        axis.set_title(facts, fontsize=10)
    texts = {"attention": "attention relative to uniform (1)", "gates": "average gate − maximum gate"}
    texts["share"] = "share of the coarser level"
    for kind, (drawn, of_rows) in bars.items():
        bar = figure.colorbar(drawn, ax=of_rows, label=texts[kind], aspect=8 * len(of_rows) // 4 + 4)
        if kind == "attention":
            bar.set_ticks([0.1, 1, 10, 100], labels=["≤ 0.1", "1", "10", "≥ 100"])
    figure.legend(handles=legend_patches(protocol), ncols=6, loc="outside lower center", fontsize=10)
    return figure


@style.styled
def attribution_figure(
    image: Tensor, pixel: tuple[int, int], methods: Mapping[str, Mapping[str, Tensor]], title: str = "", number: int = 0
) -> Figure:
    """The image with the pixel, and below it the contribution of each column at each level, aligned with the image.

    methods: {name: {level: (n,) contributions in percent of the logit}}, side by side on one scale, with their sums.
    """
    aspect, count = image.shape[-2] / image.shape[-1], len(methods)
    levels = list(next(iter(methods.values())))
    width = min(6.0, WIDTH / count)
    size = (width * count + 1, (width - 1) * aspect + 0.42 * len(levels) + 0.8)
    ratios = [(width - 1) * aspect, *[0.34] * len(levels)]
    layout = {"height_ratios": ratios, "squeeze": False, "layout": "constrained"}
    figure, axes = plt.subplots(len(ratios), count, figsize=size, **layout)
    largest = max(float(values.abs().max()) for found in methods.values() for values in found.values())
    look = {"cmap": style.CONTRIBUTION_CMAP, "norm": CenteredNorm(0, max(largest, 1e-12))}
    for column, (name, found) in zip(axes.T, methods.items(), strict=True):
        _show(column[0], as_array(image))
        y, x = ((at + 0.5) / n for at, n in zip(pixel, image.shape[-2:], strict=True))
        marker, color = style.MARKERS[number % 7], style.COLORS[number % 7]
        column[0].plot(x, y, marker, color=color, ms=10, mec="white", mew=1.6)
        column[0].set_title(f"{title}\n{name}" if name == next(iter(methods)) else name)
        for axis, level in zip(column[1:], levels, strict=True):
            drawn = _show(axis, found[level].numpy()[None], **look)
            axis.axvline(x, color=style.INK, lw=1, ls=":")
            axis.text(-0.01, 0.5, level.replace("apf", "APF "), ha="right", va="center", fontsize=10.5)
            axis.text(1.01, 0.5, f"{found[level].sum():+.2f} %".replace("-", "−"), va="center", fontsize=10.5)
    figure.colorbar(drawn, ax=axes, label="contribution, % of the logit", aspect=25)
    return figure


def _rows(capture: Capture, levels: Sequence[LevelCapture], index: int, pixels: Pixels) -> dict[str, tuple[str, list]]:
    """{title of a row: kind of its cells, and one value per level}, for the parts that the network has."""
    first, rows = levels[0], {}
    if first.query is not None:
        for y, x in pixels:
            places = [(min(int(y * h), h - 1), min(int(x * w), w - 1)) for h, w in (level.size for level in levels)]
            values = [level.strip_values(*at)[0].numpy() for level, at in zip(levels, places, strict=True)]
            rows[f"pixel\n{y:.2f}, {x:.2f}"] = ("attention", values)
    elif first.gates is not None:
        rows["gates"] = ("gates", [level.strip_values(0, 0)[0].numpy() for level in levels])
    if first.auxiliary is not None:
        rows["auxiliary\nprediction"] = ("classes", [class_ids(level.auxiliary)[0] for level in levels])
    if capture.gfu is not None:
        shares = [coarse_share(each)[index].cpu().numpy() for each in capture.gfu]
        rows["share of the\ncoarser level"] = ("share", shares)
    return rows


def _show(axis: Axes, values: np.ndarray, **options: Any) -> AxesImage:
    """Draws an image or a map over the whole cell, so that columns of all levels lie under the image's columns."""
    axis.set_axis_off()
    axis.set(xlim=(-0.02, 1.02), ylim=(1, 0))
    return axis.imshow(values, aspect="auto", **{"extent": (0, 1, 1, 0), **options})


def _show_strip(
    axis: Axes, gray: np.ndarray, values: np.ndarray, level: LevelCapture, cmap: str, norm: Normalize
) -> AxesImage:
    """One value per strip entry (L,) over the (H, W) gray image, and in pure colors in a band at its border."""
    axis.axvspan(-0.02, 1.02, color=style.MUTED, lw=0, zorder=-1)  # a bright first or last column differs from the page
    _show(axis, gray, cmap="gray", vmin=0, vmax=255)
    if cmap == style.ATTENTION_CMAP:  # an entry above uniform is about 3 pixels wide or more, also at a border
        reach = -(-3 * len(values) // 240) - 1  # the image of a level is about 240 pixels wide in a notebook
        widened = np.lib.stride_tricks.sliding_window_view(np.pad(values, reach), 2 * reach + 1).max(-1)
        values = np.where(widened > 1, widened, values)
    upright = level.strip_axis == "height"  # one entry per column
    strip = values[None, :] if upright else values[:, None]
    _show(axis, strip, cmap=cmap, norm=norm, alpha=0.6)
    return _show(axis, strip, cmap=cmap, norm=norm, extent=(0, 1, 1, 1 - BAND) if upright else (0, BAND, 1, 0))
