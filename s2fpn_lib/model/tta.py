"""Prediction in evaluation mode, from one view or with test-time augmentation (TTA): scales, mirroring, windows."""

import contextlib
import itertools
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}  # of autocast
LEAST_PROBABILITY = 1e-12  # keeps the logarithm of averaged probabilities finite


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Runs the block with `model` in evaluation mode and restores the mode of every submodule afterwards; unlike
    `model.train(was_training)`, also of those that are frozen in evaluation mode."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def resize_bilinear(x: Tensor, size: tuple[int, int], *, antialias: bool = False) -> Tensor:
    """(B, C, h, w) -> (B, C, *size), interpolated between pixel centers (align_corners=False)."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False, antialias=antialias)


def at_size(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(3, H, W) uint8 -> (3, *size) uint8, bilinear with antialiasing: the image that a network sees."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    return resize_bilinear(image[None].float(), size, antialias=True)[0].round().clamp(0, 255).to(torch.uint8)


def predict_logits(
    model: nn.Module,
    images: Tensor,
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    window: tuple[int, int] | None = None,
    overlap: float = 0.5,
    amp: str | None = None,
) -> Tensor:
    """Logits of a batch: the network's own for one view, logarithms of averaged probabilities for several views.

    Args:
        model: has `preprocess`; its mode is restored afterwards.
        images: (B, 3, H, W) uint8 RGB.
        scales: the image is resized by each; the probabilities are resized back and averaged with equal weight.
        flip: also predict each scale mirrored left to right.
        window: (height, width) in pixels of the resized image, or None. The network sees windows of at most that size;
            overlapping probabilities are averaged with weights that fall off toward the window's border.
        overlap: least share of a window that the next one covers again, 0 <= overlap < 1.
        amp: "bf16" or "fp16" runs the network under autocast; None in float32, also inside a caller's autocast.

    Returns (B, K, H, W) float32 on the model's device; softmax over dimension 1 gives the (averaged) probabilities.
    Raises TypeError for images that are not uint8, and ValueError for an argument outside its range.
    """
    if images.dtype != torch.uint8:
        raise TypeError(f"images are {images.dtype}; give uint8 RGB 0..255, model.preprocess normalizes them")
    if images.dim() != 4 or images.shape[1] != 3:
        raise ValueError(f"images are {tuple(images.shape)}; expected (B, 3, H, W)")
    if not scales or min(scales) <= 0:
        raise ValueError(f"scales={tuple(scales)}: give at least one scale, all above 0")
    if window is not None and (len(window) != 2 or min(window) < 1):
        raise ValueError(f"window={window}: give (height, width) in pixels, or None for the whole image")
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap={overlap}: a share of the window, at least 0 and below 1")
    if amp is not None and amp not in AMP_DTYPES:
        raise ValueError(f"amp={amp!r}: choose one of {', '.join(AMP_DTYPES)} or None for float32")
    views = list(itertools.product(scales, (False, True) if flip else (False,)))
    total = 0
    with torch.inference_mode(), evaluation_mode(model):
        x = model.preprocess(images)  # (B, 3, H, W); affine per channel, so it commutes with resizing
        with torch.autocast(x.device.type, AMP_DTYPES.get(amp), enabled=amp is not None):
            for scale, mirrored in views:
                logits = _predict_view(model, x.flip(-1) if mirrored else x, scale, window, overlap)
                if len(views) == 1:
                    return logits
                probability = logits.softmax(1)
                total = total + (probability.flip(-1) if mirrored else probability)
    return (total / len(views)).clamp_min(LEAST_PROBABILITY).log()


def window_starts(length: int, window: int, overlap: float) -> list[int]:
    """First pixels of evenly spaced windows of `window` pixels that cover `length` pixels with at least `overlap`."""
    if window >= length:
        return [0]
    stride = max(1, int(window * (1 - overlap)))
    count = -(-(length - window) // stride) + 1
    return [round(i * (length - window) / (count - 1)) for i in range(count)]


def window_weights(height: int, width: int) -> Tensor:
    """(height, width) float32 weights of a window's pixels: 1 at the border, rising linearly to the middle."""
    rows, columns = (torch.minimum(torch.arange(1.0, n + 1), torch.arange(n, 0.0, -1)) for n in (height, width))
    return torch.minimum(rows[:, None], columns)


def _predict_view(model: nn.Module, x: Tensor, scale: float, window: tuple[int, int] | None, overlap: float) -> Tensor:
    """(B, K, H, W) logits at x's size, from x resized by `scale`."""
    size = x.shape[-2:]
    height, width = (max(1, round(n * scale)) for n in size)
    x = resize_bilinear(x, (height, width), antialias=scale < 1)
    h, w = (min(window[0], height), min(window[1], width)) if window else (height, width)
    corners = list(itertools.product(window_starts(height, h, overlap), window_starts(width, w, overlap)))
    if len(corners) == 1:
        return resize_bilinear(model(x).float(), size, antialias=scale > 1)
    weights = window_weights(h, w).to(x.device)
    total, share = None, x.new_zeros(height, width)
    for top, left in corners:
        part = (..., slice(top, top + h), slice(left, left + w))
        probability = model(x[part]).float().softmax(1) * weights  # (B, K, h, w)
        if total is None:
            total = x.new_zeros(*probability.shape[:2], height, width)
        total[part] += probability
        share[part] += weights
    probability = resize_bilinear(total / share, size, antialias=scale > 1)
    return probability.clamp_min(LEAST_PROBABILITY).log()
