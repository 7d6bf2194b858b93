"""Label maps as pictures: colours, overlays, errors, and grids of them with the class legend."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from s2fpn_lib.data import Protocol, SegmentationDataset
from s2fpn_lib.viz.style import MUTED, picture_axes, styled

ERROR_COLOUR = (213, 94, 0)  # vermilion: apart from the grey image for every kind of colour vision
IGNORED_COLOUR = (255, 255, 255)


def colorize(ids: torch.Tensor, protocol: Protocol) -> np.ndarray:
    """(H, W) ids -> (H, W, 3) uint8 in the protocol's palette; anything that is no class in its ignore colour."""
    table = np.tile(np.array(protocol.ignore_color, np.uint8), (256, 1))
    table[: protocol.num_classes] = protocol.palette
    return table[ids.cpu().numpy().astype(np.uint8)]


def as_picture(image: torch.Tensor) -> np.ndarray:
    """(3, H, W) uint8 -> (H, W, 3) uint8 array."""
    return image.permute(1, 2, 0).cpu().numpy()


def overlay(image: torch.Tensor, ids: torch.Tensor, protocol: Protocol, opacity: float = 0.55) -> np.ndarray:
    """Class colours laid over the (3, H, W) uint8 image; ignored pixels show the image alone. (H, W, 3) uint8."""
    picture = as_picture(image).astype(np.float32)
    is_class = (ids.cpu().numpy() < protocol.num_classes)[..., None]
    mixed = np.where(is_class, (1 - opacity) * picture + opacity * colorize(ids, protocol), picture)
    return mixed.round().astype(np.uint8)


def error_picture(image: torch.Tensor, label: torch.Tensor, pred: torch.Tensor, protocol: Protocol) -> np.ndarray:
    """The image in pale grey, wrong pixels vermilion, ignored pixels white. (H, W, 3) uint8."""
    gray = as_picture(image).astype(np.float32).mean(-1, keepdims=True)
    out = np.broadcast_to(110 + 0.5 * gray, (*gray.shape[:2], 3)).copy()
    label, pred = label.cpu().numpy(), pred.cpu().numpy()
    out[label != pred] = ERROR_COLOUR
    out[label == protocol.ignore_id] = IGNORED_COLOUR
    return out.round().astype(np.uint8)


def legend_patches(protocol: Protocol, *, ignored: bool = True) -> list[Patch]:
    """One coloured patch a class, in id order, for matplotlib legends."""
    names = [*protocol.classes, *(["ignored"] if ignored else [])]
    colors = [*protocol.palette, *([protocol.ignore_color] if ignored else [])]
    return [
        Patch(facecolor=np.array(color) / 255, edgecolor=MUTED, linewidth=0.6, label=name)
        for name, color in zip(names, colors, strict=True)
    ]


@styled
def class_legend(protocol: Protocol) -> Figure:
    """The protocol's classes with their ids and colours."""
    patches = legend_patches(protocol)
    ids = [*range(protocol.num_classes), protocol.ignore_id]
    columns = 4
    rows = -(-len(patches) // columns)
    figure = plt.figure(figsize=(7.6, 0.45 + 0.27 * rows))
    for patch, number in zip(patches, ids, strict=True):
        patch.set_label(f"{number:>3}  {patch.get_label()}")
    legend = figure.legend(
        handles=patches,
        ncols=columns,
        loc="center",
        title=f"{protocol.name}: {protocol.num_classes} classes",
        handlelength=1.6,
        handleheight=1.2,
    )
    legend.get_title().set_fontweight("bold")
    return figure


@styled
def show_samples(dataset: SegmentationDataset, indices: Sequence[int] | None = None, *, width: float = 9.0) -> Figure:
    """Image | label | overlay, one sample a row. indices: None shows three, spread over the split."""
    if indices is None:
        count = min(3, len(dataset))
        indices = [(2 * i + 1) * len(dataset) // (2 * count) for i in range(count)]
    rows, names = [], []
    for index in indices:
        image, label = dataset[index]
        rows.append([as_picture(image), colorize(label, dataset.protocol), overlay(image, label, dataset.protocol)])
        names.append(dataset.names[index])
    return picture_grid(rows, ["image", "label", "overlay"], names, dataset.protocol, width)


@styled
def show_predictions(
    images: Sequence[torch.Tensor],
    labels: Sequence[torch.Tensor],
    preds: Sequence[torch.Tensor],
    protocol: Protocol,
    *,
    names: Sequence[str] | None = None,
    width: float = 11.0,
) -> Figure:
    """Image | label | prediction | error, one sample a row.

    images: (3, H, W) uint8; labels, preds: (H, W) ids at the image's size. names: one caption a row.
    """
    rows = [
        [as_picture(i), colorize(t, protocol), colorize(p, protocol), error_picture(i, t, p, protocol)]
        for i, t, p in zip(images, labels, preds, strict=True)
    ]
    titles = ["image", "label", "prediction", "error (ignored: white)"]
    return picture_grid(rows, titles, list(names or [""] * len(rows)), protocol, width)


def picture_grid(
    rows: list[list[np.ndarray]], titles: list[str], names: list[str], protocol: Protocol, width: float
) -> Figure:
    """Pictures side by side under column titles, a caption under each row, the class legend below."""
    if not rows:
        raise ValueError("no pictures to show: the list of samples is empty")
    columns = len(titles)
    cell = (width - 0.1) / columns
    heights = [cell * row[0].shape[0] / row[0].shape[1] + 0.26 for row in rows]
    per_line = max(4, int(width / 1.35))
    legend_height = 0.12 + 0.21 * -(-(protocol.num_classes + 1) // per_line)
    total = sum(heights) + legend_height + 0.25
    figure = plt.figure(figsize=(width, total))
    top = total - 0.25
    for i, (row, name) in enumerate(zip(rows, names, strict=True)):
        picture_height = heights[i] - 0.26
        for j, picture in enumerate(row):
            box = [
                (0.05 + j * cell) / width,
                (top - picture_height) / total,
                (cell - 0.07) / width,
                picture_height / total,
            ]
            axis: Axes = figure.add_axes(box)
            axis.imshow(picture, aspect="auto")
            picture_axes(axis)
            if i == 0:
                axis.set_title(titles[j], pad=4)
        figure.text(0.05 / width, (top - picture_height - 0.04) / total, name, va="top", fontsize=8, color=MUTED)
        top -= heights[i]
    figure.legend(
        handles=legend_patches(protocol),
        ncols=per_line,
        loc="lower center",
        fontsize=8.5,
        handlelength=1.3,
        columnspacing=1.2,
        borderaxespad=0.3,
    )
    return figure
