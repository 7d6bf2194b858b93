"""Crop-first augmentation: draw the scale, cut its window from the source, and resize only that window.

The published loader resizes the whole image before it cuts a crop. This order gives the same pixels at a cost that does
not grow with the image. torchvision's transforms draw from the global generator and depend on the number of workers.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

Size = tuple[int, int]  # height and width in pixels

PUBLISHED_SCALES = (0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
_LUMA = torch.tensor([0.299, 0.587, 0.114])  # ITU-R BT.601, as in torchvision's saturation


@dataclass(frozen=True)
class Augment:
    """Random changes of a training sample; the defaults are the published ones."""

    scales: tuple[float, ...] = PUBLISHED_SCALES  # to choose from, each equally likely
    scale_range: tuple[float, float] | None = None  # of a scale that is uniform in its logarithm; replaces `scales`
    flip: bool = True  # mirror left-right with probability 0.5
    photometric: float = 0.0  # p: brightness, contrast, and saturation are each multiplied by 1 - p .. 1 + p
    color_cast: float = 0.0  # c: red, green, and blue are each multiplied by 1 - c .. 1 + c
    rare_class_crops: float = 0.0  # probability that the window is centered on a pixel of a rare class of the image

    def __post_init__(self) -> None:
        if self.scale_range is None:
            if min(self.scales, default=0) <= 0:
                raise ValueError(f"scales={self.scales}: give at least one scale, all above 0")
        elif len(self.scale_range) != 2 or not 0 < self.scale_range[0] <= self.scale_range[1]:
            raise ValueError(f"scale_range={self.scale_range}: give (lowest, highest) with 0 < lowest <= highest")
        if not (0 <= self.photometric < 1 and 0 <= self.color_cast < 1 and 0 <= self.rare_class_crops <= 1):
            raise ValueError(f"{self}: photometric and color_cast must be in [0, 1), rare_class_crops in [0, 1]")


@dataclass(frozen=True)
class Cut:
    """One drawn augmentation; the window is in source pixels and may extend beyond the image."""

    top: int
    left: int
    height: int
    width: int
    flip: bool
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    cast: tuple[float, float, float] = (1.0, 1.0, 1.0)  # factors of red, green, and blue


def draw(augment: Augment, rng: np.random.Generator, size: Size, crop: Size, rare: Mapping | None = None) -> Cut:
    """Draw one augmentation for an image of ``size`` (H, W) and an output of ``crop`` (h, w). A window larger than the
    image contains the whole image at a random place. ``rare`` has an item per rare class that the image shows: its id,
    and pixels (n, 2) as (row, column)."""
    # always the same number of draws, so that one option does not change what another one draws
    which, *places, mirror, center, kind, pixel = rng.random(7)
    jitter = 1 + augment.photometric * (2 * rng.random(3) - 1)
    cast = 1 + augment.color_cast * (2 * rng.random(3) - 1)
    if augment.scale_range is not None:
        low, high = augment.scale_range
        scale = low * (high / low) ** which
    else:
        scale = augment.scales[int(which * len(augment.scales))]
    target = None
    if rare and center < augment.rare_class_crops:
        pixels = rare[sorted(rare)[int(kind * len(rare))]]
        target = pixels[int(pixel * len(pixels))]
    window = [max(1, round(side / scale)) for side in crop]
    corner = []
    for axis, extent in enumerate(window):
        # between these starts, the window covers as much of the image as it can
        low, high = sorted((0, size[axis] - extent))
        start = low + int(places[axis] * (high - low + 1)) if target is None else int(target[axis]) - extent // 2
        corner.append(min(max(start, low), high))
    return Cut(*corner, *window, augment.flip and mirror < 0.5, *jitter.tolist(), cast=tuple(cast.tolist()))


def apply(
    cut: Cut, image: np.ndarray, label: np.ndarray, crop: Size, *, fill: torch.Tensor, ignore_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The augmented ``(image (3, h, w), label (h, w))``, both uint8, of an image (H, W, 3) and a label (H, W); ``fill``
    (3,) uint8 is the color beyond the image's edge, where the label is ``ignore_id``."""
    # the part of the image inside the window, in source pixels and in output pixels
    (y0, y1), (top, bottom) = _overlap(cut.top, cut.height, label.shape[0], crop[0])
    (x0, x1), (left, right) = _overlap(cut.left, cut.width, label.shape[1], crop[1])
    size = (bottom - top, right - left)
    pixels = torch.from_numpy(image[y0:y1, x0:x1]).permute(2, 0, 1)[None]  # (h, w, 3) -> (1, 3, h, w)
    ids = label[y0:y1, x0:x1]
    if ids.shape != size:
        # half-pixel centers and no antialiasing, as in cv2.INTER_LINEAR, which the published loader uses
        pixels = F.interpolate(pixels, size, mode="bilinear", align_corners=False)
        ids = _nearest(ids, size)
    pixels, ids = _photometric(pixels, cut)[0], torch.from_numpy(ids)
    if cut.flip:
        pixels, ids = pixels.flip(-1), ids.flip(-1)
        left, right = crop[1] - right, crop[1] - left
    if size == crop:
        return pixels, ids
    out_image = fill[:, None, None].repeat(1, *crop)
    out_label = torch.full(crop, ignore_id, dtype=torch.uint8)
    out_image[:, top:bottom, left:right] = pixels
    out_label[top:bottom, left:right] = ids
    return out_image, out_label


def _overlap(start: int, extent: int, side: int, out: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Where a window overlaps an image along one axis: (first, end) in source pixels and in ``out`` output pixels."""
    first, end = max(start, 0), min(start + extent, side)
    return (first, end), (round((first - start) * out / extent), round((end - start) * out / extent))


def _nearest(ids: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h, w) resized to ``size`` by the nearest pixel center; twice as fast as torch's kernel for uint8."""
    rows, columns = ((2 * np.arange(out) + 1) * side // (2 * out) for out, side in zip(size, ids.shape, strict=True))
    return ids.take(rows, axis=0).take(columns, axis=1)


def _photometric(pixels: torch.Tensor, cut: Cut) -> torch.Tensor:
    """Cast, saturation, contrast about the mean gray, and brightness as one affine map; (1, 3, h, w) uint8."""
    if cut.brightness == cut.contrast == cut.saturation == 1 and cut.cast == (1, 1, 1):
        return pixels
    flat = pixels.reshape(3, -1).float()  # (1, 3, h, w) -> (3, h * w)
    flat *= torch.tensor(cut.cast)[:, None]
    mean_gray = _LUMA @ flat.mean(dim=1)
    # gray(x) = luma . x, mixed into every channel
    mixed = cut.saturation * torch.eye(3) + (1 - cut.saturation) * _LUMA
    offset = cut.brightness * (1 - cut.contrast) * mean_gray + 0.5  # 0.5 rounds, as the conversion below truncates
    flat = torch.mm(mixed * (cut.brightness * cut.contrast), flat).add_(offset).clamp_(0, 255)
    return flat.to(torch.uint8).reshape(pixels.shape)  # (3, h * w) -> (1, 3, h, w)
