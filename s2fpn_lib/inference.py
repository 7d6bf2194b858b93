"""From uint8 images to scores: one view, several scales, mirrored, or window by window.

Whatever the views, softmax over the classes of what comes back is the probability: with one view these are the
network's own logits, with several the logarithm of the averaged probabilities.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2fpn_lib.devices import AMP_DTYPES
from s2fpn_lib.optimize import OptimizedModel, optimize_for_inference

__all__ = [
    "OptimizedModel",
    "evaluation_mode",
    "optimize_for_inference",
    "predict_logits",
    "window_starts",
    "window_weights",
]


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
    """Scores of a batch.

    Args:
        model: has `preprocess`; put into evaluation mode here and back afterwards.
        images: (B, 3, H, W) uint8 RGB.
        scales: the image is resized by each; the probabilities are resized back and averaged with equal weight.
        flip: every scale also mirrored left to right.
        window: (h, w) in pixels of the resized image: the network sees windows of that size (or of the image's, where
            that is smaller), and overlapping probabilities are averaged with weights that fall off to the window's rim.
        overlap: least share of a window that the next one covers again, 0 <= overlap < 1.
        amp: "bf16" or "fp16" runs the network under autocast; None runs it in float32, also inside a caller's autocast.

    Returns:
        (B, K, H, W) float32 on the model's device; softmax over dim 1 gives the (averaged) probabilities.

    Raises:
        TypeError: images that are not uint8. ValueError: sizes, scales, overlap or amp that make no sense.
    """
    _check(images, scales, window, overlap, amp)
    with torch.inference_mode(), evaluation_mode(model):
        x = model.preprocess(images)  # (B, 3, H, W); affine per channel, so resizing afterwards changes nothing
        if len(scales) == 1 and not flip:
            scores, is_logits = _scale_scores(model, x, scales[0], window, overlap, amp)
            return scores if is_logits else scores.clamp_min(1e-12).log()
        total = x.new_zeros(())
        for scale, mirrored in itertools.product(scales, (False, True) if flip else (False,)):
            view = x.flip(-1) if mirrored else x
            scores, is_logits = _scale_scores(model, view, scale, window, overlap, amp)
            probability = scores.softmax(1) if is_logits else scores
            total = total + (probability.flip(-1) if mirrored else probability)
        return (total / (len(scales) * (1 + flip))).clamp_min(1e-12).log()


def window_starts(length: int, window: int, overlap: float) -> list[int]:
    """Where windows of `window` pixels begin: evenly, covering `length` pixels, overlapping at least so much."""
    if window >= length:
        return [0]
    stride = max(1, int(window * (1 - overlap)))
    count = -(-(length - window) // stride) + 1
    return [round(i * (length - window) / (count - 1)) for i in range(count)]


def window_weights(height: int, width: int) -> Tensor:
    """(height, width) float32 weights of a window's pixels: a tent, 1 at the rim and highest in the middle."""
    tents = []
    for n in (height, width):
        ramp = torch.arange(1, n + 1, dtype=torch.float32)
        tents.append(torch.minimum(ramp, ramp.flip(0)))
    return torch.minimum(tents[0][:, None], tents[1][None, :])


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """`model.eval()` inside, the mode each module had before afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _scale_scores(
    model: nn.Module, x: Tensor, scale: float, window: tuple[int, int] | None, overlap: float, amp: str | None
) -> tuple[Tensor, bool]:
    """(B, K, H, W) at x's size, and whether these are logits (one pass) or probabilities (averaged windows)."""
    size = x.shape[-2:]
    height, width = (max(1, round(n * scale)) for n in size)
    scaled = x if (height, width) == size else _resize(x, (height, width))
    starts = [(0, 0)]
    if window is not None:
        window = min(window[0], height), min(window[1], width)
        starts = list(
            itertools.product(window_starts(height, window[0], overlap), window_starts(width, window[1], overlap))
        )
    if len(starts) == 1:
        return _resize(_forward(model, scaled, amp), size), True

    weights = window_weights(*window).to(x.device)
    total = share = None
    for top, left in starts:
        part = (..., slice(top, top + window[0]), slice(left, left + window[1]))
        probability = _forward(model, scaled[part], amp).softmax(1) * weights  # (B, K, h, w)
        if total is None:
            total = x.new_zeros(len(x), probability.shape[1], height, width)
            share = x.new_zeros(height, width)
        total[part] += probability
        share[part] += weights
    return _resize(total / share, size), False


def _forward(model: nn.Module, x: Tensor, amp: str | None) -> Tensor:
    with torch.autocast(x.device.type, dtype=AMP_DTYPES.get(amp, torch.bfloat16), enabled=amp is not None):
        return model(x).float()


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear on pixel centres, (B, C, h, w) -> (B, C, *size); smoothed first where it shrinks."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    shrinks = size[0] < x.shape[-2] or size[1] < x.shape[-1]
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False, antialias=shrinks)


def _check(
    images: Tensor, scales: Sequence[float], window: tuple[int, int] | None, overlap: float, amp: str | None
) -> None:
    if images.dtype != torch.uint8:
        raise TypeError(f"images are {images.dtype}; give uint8 RGB 0..255, model.preprocess normalises them")
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
