"""Label maps as images: class colors, overlays, errors, and grids of images with the class legend."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor, nn

from s2fpn_lib.checkpoint import names_seen
from s2fpn_lib.data import Protocol, SegmentationDataset
from s2fpn_lib.evaluate import Evaluation, seen_caveat
from s2fpn_lib.metrics import class_ids
from s2fpn_lib.model.tta import at_size, predict_logits, resize_bilinear
from s2fpn_lib.viz.style import MUTED, styled

ERROR_COLOR = (213, 94, 0)  # vermilion, which color-blind readers can tell from the gray image


def colorize(ids: Tensor, protocol: Protocol) -> np.ndarray:
    """Colors (H, W) ids with the protocol's palette: (H, W, 3) uint8. Ids of no class get the ignore color."""
    table = np.tile(np.array(protocol.ignore_color, np.uint8), (256, 1))
    table[: protocol.num_classes] = protocol.palette
    return table[ids.cpu().numpy().astype(np.uint8)]


def as_array(image: Tensor) -> np.ndarray:
    """(3, H, W) uint8 tensor -> (H, W, 3) uint8 array."""
    return image.permute(1, 2, 0).cpu().numpy()


def overlay(image: Tensor, ids: Tensor, protocol: Protocol, opacity: float = 0.55) -> np.ndarray:
    """Blends class colors over the (3, H, W) uint8 image: (H, W, 3) uint8. Ignored pixels show the image alone."""
    pixels = as_array(image).astype(np.float32)
    is_class = (ids.cpu().numpy() < protocol.num_classes)[..., None]
    mixed = np.where(is_class, (1 - opacity) * pixels + opacity * colorize(ids, protocol), pixels)
    return mixed.round().astype(np.uint8)


def error_image(image: Tensor, label: Tensor, pred: Tensor, protocol: Protocol) -> np.ndarray:
    """(H, W, 3) uint8: the image in pale gray, wrong pixels in vermilion, ignored pixels in white."""
    gray = as_array(image).astype(np.float32).mean(-1, keepdims=True)
    out = np.broadcast_to(110 + 0.5 * gray, (*gray.shape[:2], 3)).copy()
    label, pred = label.cpu().numpy(), pred.cpu().numpy()
    out[label != pred] = ERROR_COLOR
    out[label == protocol.ignore_id] = 255
    return out.round().astype(np.uint8)


def legend_patches(protocol: Protocol, *, ignored: bool = True) -> list[Patch]:
    """One colored patch per class in id order, for matplotlib legends."""
    colors = dict(zip(protocol.classes, np.array(protocol.palette) / 255, strict=True))
    if ignored:
        colors["ignored"] = np.array(protocol.ignore_color) / 255
    return [Patch(fc=color, ec=MUTED, linewidth=0.6, label=name) for name, color in colors.items()]


@styled
def class_legend(protocol: Protocol) -> Figure:
    """The protocol's classes with their ids and colors."""
    patches = legend_patches(protocol)
    for patch, number in zip(patches, protocol.label_ids, strict=True):
        patch.set_label(f"{number:>3}  {patch.get_label()}")
    figure = plt.figure(figsize=(7.6, 0.45 + 0.27 * -(-len(patches) // 4)))
    title = f"{protocol.name}: {protocol.num_classes} classes"
    figure.legend(handles=patches, ncols=4, loc="center", title=title, title_fontproperties={"weight": "bold"})
    return figure


def show_samples(dataset: SegmentationDataset, indices: Sequence[int]) -> Figure:
    """Image | label | overlay, one sample per row."""
    protocol, samples = dataset.protocol, [dataset[i] for i in indices]
    rows = [[as_array(image), colorize(label, protocol), overlay(image, label, protocol)] for image, label in samples]
    return image_grid(rows, ["image", "label", "overlay"], [dataset.names[i] for i in indices], protocol, 9.0)


def predicted(model: nn.Module, image: Tensor, protocol_size: tuple[int, int], **views: Any) -> Tensor:
    """(H, W) uint8 ids at the image's own size, predicted as `evaluate` does it. views: see `predict_logits`."""
    scores = predict_logits(model, at_size(image, protocol_size)[None], **views)
    return class_ids(resize_bilinear(scores, image.shape[-2:]))[0].to("cpu", torch.uint8)


def prediction_grid(
    model: nn.Module, dataset: SegmentationDataset, indices: Sequence[int], captions: Sequence[str] = (), **views: Any
) -> Figure:
    """Image | label | prediction | error, one sample per row. captions: one per sample instead of its name.

    The caption of an image that the network was trained on says so.
    """
    protocol, rows, texts = dataset.protocol, [], []
    seen = names_seen(getattr(model, "metadata", {}), dataset)
    for i, caption in zip(indices, captions or [dataset.names[i] for i in indices], strict=True):
        image, label = dataset[i]
        pred = predicted(model, image, protocol.size, **views)
        error = error_image(image, label, pred, protocol)
        rows.append([as_array(image), colorize(label, protocol), colorize(pred, protocol), error])
        texts.append(f"{caption} ({seen_caveat(1, 1)})" if dataset.names[i] in seen else caption)
    return image_grid(rows, ["image", "label", "prediction", "error (ignored: white)"], texts, protocol, 11.0)


def worst_images(
    model: nn.Module,
    dataset: SegmentationDataset,
    evaluation: Evaluation,
    *,
    class_name: str | None = None,
    count: int = 3,
    **views: Any,
) -> Figure:
    """The images with the lowest IoU of a class (None: of the mean), lowest first, with the score in the caption.

    Raises ValueError if no scored image has enough pixels of the class (see `Evaluation.worst`).
    """
    indices = evaluation.worst(class_name, count)
    if not indices:
        raise ValueError(f"no scored image has enough pixels of the class {class_name!r} to be ranked")
    iou = 100 * evaluation.image_iou()
    column = iou.nanmean(1) if class_name is None else iou[:, evaluation.classes.index(class_name)]
    scores, what = dict(zip(evaluation.indices, column, strict=True)), class_name or "mean"
    captions = [f"{dataset.names[i]}: {what} IoU in this image {scores[i]:.1f} %" for i in indices]
    return prediction_grid(model, dataset, indices, captions=captions, **views)


def weakest_classes(evaluation: Evaluation, count: int = 3) -> list[str]:
    """The labeled classes with the lowest IoU over the split, lowest first."""
    table = evaluation.per_class()
    return list(table[table["label_share"] > 0].sort_values("iou").index[:count])


@styled
def image_grid(
    rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str], names: Sequence[str], protocol: Protocol, width: float
) -> Figure:
    """Images side by side under column titles, with a caption below each row and the class legend at the bottom.

    rows: (H, W, 3) uint8 arrays, at least one row; titles: one per column; names: one caption per row; width: inches.
    """
    if not rows:
        raise ValueError("no images to show: the list of samples is empty")
    per_line = max(4, int(width / 1.35))
    legend_height = 0.12 + 0.21 * -(-(protocol.num_classes + 1) // per_line)
    heights = [width / len(titles) * row[0].shape[0] / row[0].shape[1] for row in rows]
    size = (width, sum(heights) + 0.19 * len(rows) + 0.25 + legend_height)
    figure = plt.figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(rows), len(titles), height_ratios=heights, squeeze=False)
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.01, wspace=0, hspace=0)
    for row_axes, row, name in zip(axes, rows, names, strict=True):
        for axis, image in zip(row_axes, row, strict=True):
            axis.imshow(image)
            axis.set_axis_off()
        row_axes[0].text(0, -0.02, name, transform=row_axes[0].transAxes, va="top", fontsize=8, color=MUTED)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, pad=4)
    legend = {"ncols": per_line, "loc": "outside lower center", "fontsize": 8.5, "handlelength": 1.3}
    figure.legend(handles=legend_patches(protocol), **legend)
    return figure
