"""Label maps as images: class colors, overlays, errors, and grids of images with the class legend."""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image
from torch import Tensor, nn

from s2fpn_lib.checkpoint import names_seen
from s2fpn_lib.data import Protocol, SegmentationDataset
from s2fpn_lib.evaluate import Evaluation, seen_caveat
from s2fpn_lib.metrics import class_ids
from s2fpn_lib.model.tta import at_size, predict_logits, resize_bilinear
from s2fpn_lib.viz.style import HIGHLIGHT, MUTED, styled

TITLES = ("image", "label", "prediction", "error (ignored: white)")
ERROR_COLOR = (213, 94, 0)  # vermilion, which color-blind readers can tell from the gray image
Rows = Sequence[Sequence[np.ndarray]]  # of (H, W, 3) uint8 images


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


def sample_views(dataset: SegmentationDataset, index: int) -> list[np.ndarray]:
    """Image, label, and overlay of a sample, each (H, W, 3) uint8."""
    image, label = dataset[index]
    return [as_array(image), colorize(label, dataset.protocol), overlay(image, label, dataset.protocol)]


def contact_sheet(entries: Iterable[tuple[str, Sequence[np.ndarray]]], columns: int = 6) -> str:
    """Thumbnails as HTML; a click opens the pictures of an entry side by side, also without a kernel.

    entries: HTML caption and (H, W, 3) uint8 pictures of one size, of which the first is the thumbnail.
    """
    cells = [
        f"<details><summary>{html_image(jpeg(pictures[0], 200))}{caption}</summary>"
        f"{html_image(jpeg(np.concatenate(pictures, axis=1), 360 * len(pictures)))}</details>"
        for caption, pictures in entries
    ]
    style = (Path(__file__).parent / "contact_sheet.css").read_text()
    return f'<style>{style}</style><div class="contact-sheet" style="--columns: {columns}">{"".join(cells)}</div>'


def jpeg(pixels: np.ndarray, width: int | None = None, **options: int) -> bytes:
    """(H, W, 3) uint8 as JPEG, scaled down to a width; options: of Pillow's writer."""
    picture, data = Image.fromarray(pixels), io.BytesIO()
    picture.thumbnail((width or picture.width, picture.height))
    picture.save(data, "jpeg", **{"quality": 80, **options})
    return data.getvalue()


def html_image(data: bytes, alt: str = "") -> str:
    """An <img> element that contains a JPEG."""
    return f'<img alt="{escape(alt)}" src="data:image/jpeg;base64,{base64.b64encode(data).decode()}">'


def predicted(model: nn.Module, image: Tensor, protocol_size: tuple[int, int], **views: Any) -> Tensor:
    """(H, W) uint8 ids at the image's own size, predicted as `evaluate` does it. views: see `predict_logits`."""
    scores = predict_logits(model, at_size(image, protocol_size)[None], **views)
    return class_ids(resize_bilinear(scores, image.shape[-2:]))[0].to("cpu", torch.uint8)


def prediction_views(model: nn.Module, dataset: SegmentationDataset, index: int, **views: Any) -> list[np.ndarray]:
    """Image, label, prediction, and errors of a sample, each (H, W, 3) uint8. views: see `predict_logits`."""
    image, label = dataset[index]
    pred, protocol = predicted(model, image, dataset.protocol.size, **views), dataset.protocol
    errors = error_image(image, label, pred, protocol)
    return [as_array(image), colorize(label, protocol), colorize(pred, protocol), errors]


def prediction_grid(
    model: nn.Module, dataset: SegmentationDataset, indices: Sequence[int], captions: Sequence[str] = (), **views: Any
) -> Figure:
    """Image | label | prediction | error, one sample per row. Captions (default: names) say what was trained on."""
    rows = [prediction_views(model, dataset, i, **views) for i in indices]
    captions = _with_caveats(model, dataset, indices, captions or [dataset.names[i] for i in indices])
    return image_grid(rows, TITLES, captions, dataset.protocol, 11.0)


def _with_caveats(
    model: nn.Module, dataset: SegmentationDataset, indices: Sequence[int], captions: Sequence[str]
) -> list[str]:
    seen = names_seen(getattr(model, "metadata", {}), dataset)
    texts = zip(indices, captions, strict=True)
    return [f"{text} ({seen_caveat(1, 1)})" if dataset.names[i] in seen else text for i, text in texts]


def worst_images(
    model: nn.Module, dataset: SegmentationDataset, evaluation: Evaluation, class_name: str, count: int, **views: Any
) -> Figure:
    """The images with the lowest IoU of a class (empty: of the mean), lowest first, with the score in the caption.

    For a class, the image shows where the label has it (yellow outline), and beside it the region around its largest
    error. Raises ValueError if no scored image has enough pixels of the class (see `Evaluation.worst`).
    """
    indices, protocol = evaluation.worst(class_name or None, count), dataset.protocol
    if not indices:
        raise ValueError(f"no scored image has enough pixels of the class {class_name!r} to be ranked")
    iou = 100 * evaluation.image_iou()
    column = iou[:, evaluation.classes.index(class_name)] if class_name else iou.nanmean(1)
    scores = dict(zip(evaluation.indices, column, strict=True))
    captions = [f"{dataset.names[i]}: {class_name or 'mean'} IoU in this image {scores[i]:.1f} %" for i in indices]
    if not class_name:
        return prediction_grid(model, dataset, indices, captions=captions, **views)
    rows = []
    for place, i in enumerate(indices):
        image, label = dataset[i]
        pred = predicted(model, image, protocol.size, **views)
        error, text = largest_error(label, pred, class_name, protocol)
        part = crop_around(error)
        pictures = [as_array(image), colorize(label, protocol), colorize(pred, protocol)]
        outlined = [outline(picture, error)[part] for picture in (*pictures, error_image(image, label, pred, protocol))]
        rows.append([outline(pictures[0], label == evaluation.classes.index(class_name)), *outlined])
        captions[place] += f". {text}"
    titles = [f"{class_name} outlined", "its largest error", *TITLES[1:]]
    return image_grid(rows, titles, _with_caveats(model, dataset, indices, captions), protocol, 11.0)


def largest_error(label: Tensor, pred: Tensor, class_name: str, protocol: Protocol) -> tuple[Tensor, str]:
    """The largest connected region, (H, W) bool, where label or prediction alone has the class; and it in words."""
    k = protocol.classes.index(class_name)
    wrong = ((label == k) != (pred == k)) & (label != protocol.ignore_id)
    if not wrong.any():
        return wrong, f"no error of {class_name}"
    numbers = torch.arange(1.0, wrong.numel() + 1).view(wrong.shape) * wrong  # each pixel a region of its own
    while True:  # neighbors join the region with the larger number
        joined = F.max_pool2d(numbers[None], 3, 1, 1)[0] * wrong
        if torch.equal(joined, numbers):
            break
        numbers = joined
    region = numbers == numbers[wrong].mode().values
    ids = [map_[region].mode().values for map_ in (label, pred)]
    labeled, called = (protocol.classes[i] for i in ids)
    return region, f"Largest error: {int(region.sum())} pixels, mostly {labeled} predicted as {called}"


def crop_around(mask: Tensor, least: float = 0.3) -> tuple[slice, slice]:
    """The part of an (H, W) picture around a mask: of the picture's aspect ratio, with `least` of its size or more."""
    if not mask.any():
        return slice(None), slice(None)
    share = min(1, max(least, 2 * mask.float().mean().sqrt().item()))
    lengths = [round(share * n) for n in mask.shape]
    middle = mask.nonzero().float().mean(0)
    starts = [min(max(int(m) - k // 2, 0), n - k) for m, k, n in zip(middle, lengths, mask.shape, strict=True)]
    return tuple(slice(start, start + length) for start, length in zip(starts, lengths, strict=True))


def outline(pixels: np.ndarray, mask: Tensor) -> np.ndarray:
    """The (H, W, 3) picture with a yellow outline, two pixels wide, around an (H, W) bool mask."""
    grown = F.max_pool2d(mask[None].float(), 5, 1, 2)[0] > 0
    out = pixels.copy()
    out[(grown & ~mask).numpy()] = HIGHLIGHT
    return out


@styled
def image_grid(
    rows: Rows, titles: Sequence[str], names: Sequence[str], protocol: Protocol, width: float, scale: Sequence[str] = ()
) -> Figure:
    """Images side by side under column titles, with a caption below each row and the class legend at the bottom.

    titles: one per column; names: one caption per row; width: inches; scale: color map and text of a color bar from 0
    to 1. Raises ValueError if there is no row.
    """
    if not rows:
        raise ValueError("no images to show: the list of samples is empty")
    per_line = max(4, int(width / 1.5))
    legend_height = 0.15 + 0.24 * -(-(protocol.num_classes + 1) // per_line)
    column = (width - (1.3 if scale else 0)) / len(titles)  # inches
    heights = [column * row[0].shape[0] / row[0].shape[1] for row in rows]
    size = (width, sum(heights) + 0.24 * len(rows) + 0.3 + legend_height)
    figure = plt.figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(rows), len(titles), height_ratios=heights, squeeze=False)
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.12, wspace=0, hspace=0)
    for row_axes, row, name in zip(axes, rows, names, strict=True):
        for axis, image in zip(row_axes, row, strict=True):
            axis.imshow(image)
            axis.set_axis_off()
        caption = row_axes[0].text(0, -0.02, name, transform=row_axes[0].transAxes, va="top", fontsize=10, color=MUTED)
        caption.set_in_layout(False)  # it may be wider than its image
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, pad=4)
    legend = {"ncols": per_line, "loc": "outside lower center", "fontsize": 10, "handlelength": 1.3}
    figure.legend(handles=legend_patches(protocol), **legend)
    if scale:
        figure.colorbar(ScalarMappable(cmap=scale[0]), ax=axes, label=scale[1], shrink=0.8, aspect=30)
    return figure
