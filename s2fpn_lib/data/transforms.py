"""Crop-first augmentation: choose the scale, cut its window from the source, resize only that.

The published loader resizes the whole image by ``s`` and then cuts a crop of ``crop`` pixels. The same picture comes
from cutting a window of ``crop / s`` pixels first and resizing it to ``crop``: a quarter of the work at s = 2 for an
image of the crop's size, and the cost no longer grows with the image (Cityscapes: 2 megapixels).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

PUBLISHED_SCALES = (0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
_LUMA = torch.tensor([0.299, 0.587, 0.114])  # ITU-R BT.601, as torchvision's saturation uses


@dataclass(frozen=True)
class Augment:
    """What may happen to a training sample.

    Attributes:
        scales: the scales to choose from, each equally likely (published: .75, 1, 1.25, 1.5, 1.75, 2).
        scale_range: (lowest, highest) of a continuous scale, uniform in its logarithm; replaces ``scales``.
        flip: mirror left-right half of the time.
        photometric: brightness, contrast and saturation are each multiplied by 1 - p .. 1 + p; 0 leaves colours alone
            (published).
        colour_cast: red, green and blue are each multiplied by 1 - c .. 1 + c, as light of another colour does; 0 as
            published.
        rare_class_crops: probability that the window is centred on a pixel of a rare class of the image instead of
            anywhere; 0 as published.
        rare_share: a class is rare when its share of the dataset's labelled pixels is below this.
    """

    scales: tuple[float, ...] = PUBLISHED_SCALES
    scale_range: tuple[float, float] | None = None
    flip: bool = True
    photometric: float = 0.0
    color_cast: float = 0.0
    rare_class_crops: float = 0.0
    rare_share: float = 0.02

    def __post_init__(self) -> None:
        # configurations come from JSON, which has lists
        object.__setattr__(self, "scales", tuple(self.scales))
        if self.scale_range is not None:
            object.__setattr__(self, "scale_range", tuple(self.scale_range))
            if len(self.scale_range) != 2 or not 0 < self.scale_range[0] <= self.scale_range[1]:
                raise ValueError(f"scale_range={self.scale_range}: give (lowest, highest) with 0 < lowest <= highest")
        elif not self.scales or min(self.scales) <= 0:
            raise ValueError(f"scales={self.scales}: give at least one scale, all above 0")
        for name in ("photometric", "color_cast"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give a strength from 0 up to, but not, 1")
        for name in ("rare_class_crops", "rare_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: give a share in 0..1")


NO_AUGMENT = Augment(scales=(1.0,), flip=False)


@dataclass(frozen=True)
class Cut:
    """One drawn augmentation: the window in source pixels (it may reach beyond the image) and what follows it."""

    top: int
    left: int
    height: int
    width: int
    flip: bool
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    cast: tuple[float, float, float] = (1.0, 1.0, 1.0)  # factors on red, green and blue


def draw(
    augment: Augment,
    rng: np.random.Generator,
    size: tuple[int, int],
    crop: tuple[int, int],
    rare: Mapping[int, np.ndarray] | None = None,
) -> Cut:
    """Draw one augmentation for an image of ``size`` (H, W).

    Where the window is larger than the image, the image's place in it is as random as the window's place in a larger
    image is.

    Args:
        rare: pixels (n, 2) as (row, column) of each rare class that the image shows.
    """
    # always the same number of draws, so that one option does not shift what another one draws
    which, rows, columns, mirror, center, kind, pixel = rng.random(7)
    jitter = 1 + augment.photometric * (2 * rng.random(3) - 1)
    cast = 1 + augment.color_cast * (2 * rng.random(3) - 1)
    if augment.scale_range is not None:
        low, high = augment.scale_range
        scale = low * (high / low) ** which
    else:
        scale = augment.scales[int(which * len(augment.scales))]
    window = [max(1, round(side / scale)) for side in crop]
    # first and last start at which the window still meets as much of the image as it can
    starts = [(min(0, side - extent), max(0, side - extent)) for side, extent in zip(size, window, strict=True)]
    if rare and center < augment.rare_class_crops:
        classes = sorted(rare)
        pixels = rare[classes[int(kind * len(classes))]]
        target = pixels[int(pixel * len(pixels))]
        wanted = [int(at) - extent // 2 for at, extent in zip(target, window, strict=True)]
    else:
        wanted = [
            low + int(share * (high - low + 1)) for share, (low, high) in zip((rows, columns), starts, strict=True)
        ]
    top, left = (min(max(start, low), high) for start, (low, high) in zip(wanted, starts, strict=True))
    flip = augment.flip and mirror < 0.5
    return Cut(top, left, *window, flip, *jitter.tolist(), cast=tuple(cast.tolist()))


def apply(
    cut: Cut,
    image: np.ndarray,
    label: np.ndarray,
    out_image: torch.Tensor,
    out_label: torch.Tensor,
    *,
    fill: torch.Tensor,
    ignore_id: int,
) -> None:
    """Write the augmented sample into a batch.

    Args:
        image: (H, W, 3) uint8, not changed.
        label: (H, W) uint8, not changed.
        out_image: (3, h, w) uint8.
        out_label: (h, w) uint8.
        fill: (3,) uint8, the colour beyond the image's edge, where the label is ``ignore_id``.
    """
    (height, width), (out_height, out_width) = label.shape, out_label.shape
    y0, y1 = max(cut.top, 0), min(cut.top + cut.height, height)
    x0, x1 = max(cut.left, 0), min(cut.left + cut.width, width)
    # the same edges in output pixels
    top, bottom = (round((y - cut.top) * out_height / cut.height) for y in (y0, y1))
    left, right = (round((x - cut.left) * out_width / cut.width) for x in (x0, x1))
    size = (bottom - top, right - left)
    if size != (out_height, out_width):
        out_image[:] = fill[:, None, None]
        out_label[:] = ignore_id
    pixels = torch.from_numpy(image[y0:y1, x0:x1]).permute(2, 0, 1)[None]  # (h, w, 3) -> (1, 3, h, w)
    ids = label[y0:y1, x0:x1]
    if ids.shape != size:
        # half-pixel centres and no antialiasing, as cv2.INTER_LINEAR, which the published loader uses, has it
        pixels = F.interpolate(pixels, size, mode="bilinear", align_corners=False)
        ids = _nearest(ids, size)
    pixels = _photometric(pixels, cut)[0]
    ids = torch.from_numpy(ids)
    if cut.flip:
        pixels, ids = pixels.flip(-1), ids.flip(-1)
        left, right = out_width - right, out_width - left
    out_image[:, top:bottom, left:right] = pixels
    out_label[top:bottom, left:right] = ids


def _nearest(ids: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h, w) resized to ``size`` by the nearest pixel centre; gathering rows, then columns, beats torch's kernel 2x."""
    rows, columns = (
        (2 * np.arange(out) + 1) * extent // (2 * out) for out, extent in zip(size, ids.shape, strict=True)
    )
    return ids.take(rows, axis=0).take(columns, axis=1)


def _photometric(pixels: torch.Tensor, cut: Cut) -> torch.Tensor:
    """Cast, saturation, contrast about the mean grey, brightness, as one affine map of the colours.

    (1, 3, h, w) uint8 -> (1, 3, h, w) uint8.
    """
    if cut.brightness == cut.contrast == cut.saturation == 1 and cut.cast == (1, 1, 1):
        return pixels
    flat = pixels.reshape(3, -1).float()  # (1, 3, h, w) -> (3, h * w)
    if cut.cast != (1, 1, 1):
        flat *= torch.tensor(cut.cast)[:, None]
    mean_gray = _LUMA @ flat.mean(dim=1)
    # grey(x) = luma . x, mixed into every channel
    mixed = cut.saturation * torch.eye(3) + (1 - cut.saturation) * _LUMA
    offset = cut.brightness * (1 - cut.contrast) * mean_gray + 0.5  # a half, as the cast below cuts decimals off
    flat = torch.mm(mixed * (cut.brightness * cut.contrast), flat).add_(offset).clamp_(0, 255)
    return flat.to(torch.uint8).reshape(pixels.shape)  # (3, h * w) -> (1, 3, h, w)
