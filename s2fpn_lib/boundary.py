"""Boundary F-score: how well predicted class contours follow the labelled ones.

Source: Csurka, Larlus, Perronnin, "What is a good evaluation measure for semantic segmentation?", BMVC 2013.
Exact definition used here, for each image and class c:

- A pixel lies on the boundary of c if it is c and one of its four neighbours is a scored pixel of another class.
  Pixels whose label is ignored are scored in neither map, so the edge of an unlabelled region is no boundary, and
  neither is the image border.
- precision = predicted boundary pixels of c that lie within `tolerance` (Euclidean, pixel centres) of a labelled
  boundary pixel of c / predicted boundary pixels of c; recall the same with the two maps exchanged.
- F = 2 P R / (P + R); 0 where only one of the maps has a boundary of c, undefined (left out) where neither has.

The class score is the mean of F over the images where it is defined. The score of an image is the mean over its
defined classes, and `mean()` is the mean of that over images, as in the paper. The paper's tolerance, 0.75 % of the
image diagonal, is the default (4.5 pixels at 360 x 480).
"""

import math

import torch
from torch import Tensor

from s2fpn_lib.metrics import joint_histogram

PAPER_TOLERANCE = 0.0075  # of the image diagonal


def default_tolerance(height: int, width: int) -> float:
    """0.75 % of the image diagonal, in pixels."""
    return PAPER_TOLERANCE * math.hypot(height, width)


def boundary_mask(ids: Tensor, scored: Tensor) -> Tensor:
    """(B, H, W) ids and bool `scored` -> (B, H, W) bool: on the boundary of its own class (module docstring)."""
    out = torch.zeros_like(scored)
    for dim in (1, 2):
        n = ids.shape[dim] - 1
        both_scored = scored.narrow(dim, 0, n) & scored.narrow(dim, 1, n)
        edge = (ids.narrow(dim, 0, n) != ids.narrow(dim, 1, n)) & both_scored
        out.narrow(dim, 0, n).logical_or_(edge)
        out.narrow(dim, 1, n).logical_or_(edge)
    return out


def _or_shifted(out: Tensor, x: Tensor, shift: int, dim: int) -> None:
    """out |= x moved by `shift` pixels both ways along `dim`, nothing coming in at the border."""
    n = x.shape[dim] - shift
    if n > 0:
        out.narrow(dim, shift, n).bitwise_or_(x.narrow(dim, 0, n))
        out.narrow(dim, 0, n).bitwise_or_(x.narrow(dim, shift, n))


def dilate_bits(bits: Tensor, radius: float) -> Tensor:
    """Dilate (B, H, W) integer maps by a Euclidean disc, every bit on its own: all classes in one pass.

    A disc is a stack of rows: the row at distance dy from the centre reaches floor(sqrt(radius^2 - dy^2)) pixels.
    """
    out = torch.zeros_like(bits)
    row, reach = bits.clone(), 0  # `bits` widened horizontally by `reach`
    for dy in range(math.floor(radius), -1, -1):  # far rows are the narrow ones
        while reach < math.isqrt(math.floor(radius**2) - dy**2):
            reach += 1
            _or_shifted(row, bits, reach, dim=2)
        if dy:
            _or_shifted(out, row, dy, dim=1)
    return out | row


class BoundaryScore:
    """Streaming boundary F-score of a split.

    num_classes: K, at most 62. ignore_index as in `ConfusionMatrix`. tolerance: pixels; None takes 0.75 % of each
    image's diagonal. Sums stay on the tensors' device, without host synchronisation.
    """

    def __init__(self, num_classes: int, ignore_index: int | None = None, tolerance: float | None = None):
        if num_classes > 62:
            raise ValueError(f"num_classes is {num_classes}; the boundary score packs classes into 62 bits")
        if tolerance is not None and tolerance < 0:
            raise ValueError(f"tolerance is {tolerance} pixels; it must be 0 or more")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.tolerance = tolerance
        self.class_sums = torch.zeros(num_classes, 2, dtype=torch.float64)  # sum of F, images where F is defined
        self.image_sums = torch.zeros(2, dtype=torch.float64)  # sum of image scores, images that have one

    def update(self, pred: Tensor, label: Tensor) -> Tensor:
        """Add (B, H, W) integer `pred` and `label`; returns the batch's F, (B, K) float64, NaN where undefined."""
        height, width = label.shape[-2:]
        radius = default_tolerance(height, width) if self.tolerance is None else self.tolerance
        scored = torch.ones_like(label, dtype=torch.bool)
        if self.ignore_index is not None:
            scored = label != self.ignore_index
        of_pred, of_label = self._matches(pred.masked_fill(~scored, 0), label.masked_fill(~scored, 0), scored, radius)
        precision = of_pred[..., 2].double() / of_pred[..., 1:].sum(-1)  # (B, K), NaN without predicted boundary
        recall = of_label[..., 2].double() / of_label[..., 1:].sum(-1)
        f = 2 * precision * recall / (precision + recall)
        f = torch.where(precision.isnan() & recall.isnan(), f, f.nan_to_num(0.0))
        defined = ~f.isnan()
        image = f.nanmean(1)  # (B,)
        device = f.device
        self.class_sums = self.class_sums.to(device) + torch.stack((f.nan_to_num(0).sum(0), defined.sum(0)), 1)
        self.image_sums = self.image_sums.to(device) + torch.stack((image.nansum(), (~image.isnan()).sum()))
        return f

    def _matches(self, pred: Tensor, label: Tensor, scored: Tensor, radius: float) -> tuple[Tensor, Tensor]:
        """Two (B, K, 3) counts for prediction and label: pixels off the boundary, unmatched on it, matched on it."""
        dtype = next(d for d, b in ((torch.int16, 14), (torch.int32, 30), (torch.int64, 62)) if self.num_classes <= b)
        one = torch.ones((), dtype=dtype, device=label.device)
        on = [boundary_mask(ids, scored) for ids in (pred, label)]
        bits = [torch.bitwise_left_shift(one, ids.to(dtype)) * m for ids, m in zip((pred, label), on, strict=True)]
        counts = []
        for i, ids in enumerate((pred, label)):
            near = (dilate_bits(bits[1 - i], radius) & bits[i]) != 0
            state = on[i].to(torch.uint8) + near  # 0 off, 1 on, 2 on and matched
            counts.append(joint_histogram(ids, state, self.num_classes, 3))
        return counts[0], counts[1]

    def per_class(self) -> Tensor:
        """(K,) float64, mean F over the images where the class has a boundary; NaN where none has."""
        return self.class_sums[:, 0] / self.class_sums[:, 1]

    def mean(self) -> float:
        """Mean over images of the mean F over the image's classes."""
        return (self.image_sums[0] / self.image_sums[1]).item()
