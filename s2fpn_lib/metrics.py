"""Confusion matrix, boundary F-score, and calibration of a split, accumulated batch by batch.

Boundary F-score (Csurka, Larlus, Perronnin, "What is a good evaluation measure for semantic segmentation?", BMVC 2013),
for each image and class c:

- A pixel lies on the boundary of c if it is c and one of its four neighbors is a scored pixel of another class.
- Precision is the share of the predicted boundary pixels of c that lie within `tolerance` (Euclidean, between pixel
  centers) of a labeled boundary pixel of c. Recall is the same with the two maps exchanged.
- F = 2 P R / (P + R). It is 0 where only one of the maps has a boundary of c, and undefined where neither has.

The score of a class is the mean of F over the images, that of an image the mean over its classes, where F is defined.
"""

import math

import torch
from torch import Tensor

# On CUDA, neighboring pixels count into different lanes that are added up afterwards: neighbors mostly fall into the
# same bin, and atomic additions to one address wait for each other.
CUDA_LANES = 32
PAPER_TOLERANCE = 0.0075  # of the image diagonal


class UnknownIdError(ValueError):
    """A prediction or label holds an id that is neither a class nor the ignored id."""


def class_ids(scores: Tensor) -> Tensor:
    """(B, K, H, W) scores -> (B, H, W) int64 ids of the largest score."""
    return scores.max(dim=1).indices  # as argmax, and four times as fast on a CPU


def joint_histogram(rows: Tensor, columns: Tensor, num_rows: int, num_columns: int) -> Tensor:
    """Exact histograms (B, num_rows, num_columns) int64 of (B, H, W) integer ids, one per image."""
    batch, bins = len(rows), num_rows * num_columns
    if rows.is_cuda:  # where `torch.bincount` would synchronize
        image = torch.arange(batch, device=rows.device)[:, None]  # (B, 1)
        lane = torch.arange(rows[0].numel(), device=rows.device) % CUDA_LANES  # (HW,)
        code = rows.flatten(1).long() * num_columns + columns.flatten(1)  # (B, HW)
        code += (image * CUDA_LANES + lane) * bins
        counts = torch.zeros(batch * CUDA_LANES * bins, dtype=torch.int64, device=rows.device)
        counts.scatter_add_(0, code.flatten(), counts.new_ones(1).expand(code.numel()))
        return counts.view(batch, CUDA_LANES, num_rows, num_columns).sum(1)

    dtype = torch.int16 if bins < 2**15 else torch.int32  # small codes of one image stay in the processor's cache
    pairs = zip(rows.flatten(1), columns.flatten(1), strict=True)
    codes = [row.to(dtype, copy=True).mul_(num_columns).add_(column) for row, column in pairs]
    counts = torch.stack([torch.bincount(code, minlength=bins) for code in codes])
    return counts.view(batch, num_rows, num_columns)


class ConfusionMatrix:
    """Streaming confusion matrix: `matrix[label, prediction]` counts pixels, int64, on the tensors' device.

    num_classes: K, from 1 to 253. ignore_index: label id that is not scored; None scores every pixel. torchmetrics'
    matrix gives no counts per image, and checks ids by synchronizing with a CUDA device.
    """

    def __init__(self, num_classes: int, ignore_index: int | None = None):
        if not 1 <= num_classes <= 253:
            raise ValueError(f"num_classes is {num_classes}; a confusion matrix of 8-bit ids takes 1 to 253")
        self.num_classes, self.ignore_index = num_classes, ignore_index
        # rows: K classes, unknown labels, ignored pixels; columns: K classes, unknown predictions
        self.counts = torch.zeros(num_classes + 2, num_classes + 1, dtype=torch.int64)

    def update(self, pred: Tensor, label: Tensor) -> Tensor:
        """Adds a batch and returns its own matrices, (B, K, K) int64, one per image.

        pred: (B, H, W) integer ids or (B, K, H, W) scores. label: (B, H, W) integer ids. A single (H, W) label with its
        prediction is a batch of one. Raises UnknownIdError for ids outside the classes, on CUDA only when the matrix is
        read; ValueError for sizes that do not fit; TypeError for ids that are floating-point numbers.
        """
        k = self.num_classes
        if label.dim() == 2:
            pred, label = pred[None], label[None]
        if pred.dim() == 4:
            if pred.shape[1] != k:
                hint = "build the model with the protocol's num_classes"
                raise ValueError(f"scores have {pred.shape[1]} channels, this matrix has {k} classes; {hint}")
            pred = class_ids(pred)
        if pred.shape != label.shape:
            hint = "resize the logits to the label, never the label to the logits"
            raise ValueError(f"prediction {tuple(pred.shape)}, label {tuple(label.shape)}: sizes differ; {hint}")
        if pred.is_floating_point() or label.is_floating_point():
            raise TypeError(f"ids must be integers, got {pred.dtype} predictions and {label.dtype} labels")
        rows, columns = self._known_ids(label), self._known_ids(pred)
        # an id outside 0..255 compared with a uint8 tensor would wrap around
        if self.ignore_index is not None and (label.dtype != torch.uint8 or 0 <= self.ignore_index <= 255):
            rows = torch.where(label == self.ignore_index, k + 1, rows)
        counts = joint_histogram(rows, columns, k + 2, k + 1)
        if not counts.is_cuda:
            self._check_ids(counts.sum(0))
        self.counts = self.counts.to(counts.device) + counts.sum(0)
        return counts[:, :k, :k]

    def _known_ids(self, ids: Tensor) -> Tensor:
        """Class ids as uint8; every other id becomes K."""
        if ids.dtype != torch.uint8:
            ids = ids.long().clamp(-1, self.num_classes).to(torch.uint8)  # -1 becomes 255
        return ids.clamp(max=self.num_classes)

    def _check_ids(self, counts: Tensor) -> None:
        k = self.num_classes
        outside = f"pixels hold ids outside 0..{k - 1}"
        if labels := int(counts[k].sum()):
            hint = "check the label's encoding (train ids?) or the protocol's ignore_id"
            raise UnknownIdError(f"{labels} label {outside} that are not the ignored id {self.ignore_index}; {hint}")
        if predictions := int(counts[:k, k].sum()):
            hint = "the prediction comes from a model with other classes, or from a file with another encoding"
            raise UnknownIdError(f"{predictions} predicted {outside}; {hint}")

    @property
    def matrix(self) -> Tensor:
        """(K, K) int64, rows are labels and columns predictions; scored pixels only."""
        self._check_ids(self.counts)
        return self.counts[: self.num_classes, : self.num_classes]

    @classmethod
    def from_matrix(cls, matrix: Tensor, ignore_index: int | None = None) -> "ConfusionMatrix":
        """A confusion matrix with stored (K, K) integer counts; ValueError for another shape, type, or count."""
        out = cls(len(matrix), ignore_index)
        if matrix.shape != out.matrix.shape or matrix.is_floating_point() or (matrix < 0).any():
            raise ValueError(f"a confusion matrix holds (K, K) counts, not {matrix.dtype} {tuple(matrix.shape)}")
        out.matrix.copy_(matrix)
        return out

    def iou(self) -> Tensor:
        """(K,) float64, TP / (TP + FP + FN); NaN where the class is in neither labels nor predictions."""
        return iou_from_totals(class_totals(self.matrix))

    def miou(self) -> float:
        """Mean IoU over the classes in labels or predictions; without true positives 0. NaN without scored pixels."""
        return self.iou().nanmean().item()

    def published_miou(self) -> float:
        """Mean IoU as the published code computes it, without the classes that have no true positive."""
        iou = self.iou()
        return iou[iou > 0].mean().item()

    def pixel_accuracy(self) -> float:
        """Correct scored pixels / scored pixels."""
        matrix = self.matrix
        return (matrix.trace().double() / matrix.sum()).item()

    def frequency_weighted_iou(self) -> float:
        """Sum over classes of (label share * IoU)."""
        matrix = self.matrix
        share = matrix.sum(1).double() / matrix.sum()
        return torch.where(share > 0, share * self.iou(), share).sum().item()

    def recall(self) -> Tensor:
        """(K,) float64, TP / label pixels, also called class accuracy; NaN where the class has no label."""
        return self.matrix.diagonal().double() / self.matrix.sum(1)

    def precision(self) -> Tensor:
        """(K,) float64, TP / predicted pixels; NaN where the class is never predicted."""
        return self.matrix.diagonal().double() / self.matrix.sum(0)

    def class_accuracy(self) -> float:
        """Mean recall over the classes that occur in the labels."""
        return self.recall().nanmean().item()


class Calibration:
    """Streaming reliability of a split: does a network that is 80 % sure err in 20 % of the pixels?

    The confidence of a pixel, the probability of its predicted class, is counted in equal bins, which `table` merges.
    """

    def __init__(self, ignore_index: int | None = None, bins: int = 100):
        self.ignore_index = ignore_index
        self.sums = torch.zeros(bins, 3, dtype=torch.float64)  # pixels, sum of their confidences, correct pixels

    def update(self, logits: Tensor, label: Tensor) -> None:
        """Adds (B, K, H, W) logits, of which the softmax over K gives the probabilities, and (B, H, W) labels."""
        confidence, pred = logits.softmax(1).max(1)
        scored = torch.ones_like(label, dtype=torch.bool) if self.ignore_index is None else label != self.ignore_index
        confidence, correct = confidence[scored].double(), (pred == label)[scored].double()
        bins = (confidence * len(self.sums)).long().clamp(max=len(self.sums) - 1)
        values = torch.stack((torch.ones_like(correct), confidence, correct), 1)
        self.sums = self.sums.to(values.device).index_add(0, bins, values)

    def table(self, bins: int = 20) -> Tensor:
        """(bins, 3) float64: pixels, mean confidence, accuracy (NaN in empty bins); `bins` divides the counted ones."""
        pixels, confidence, correct = self.sums.unflatten(0, (bins, -1)).sum(1).unbind(1)
        return torch.stack((pixels, confidence / pixels, correct / pixels), 1)

    def error(self, bins: int = 20) -> float:
        """Expected calibration error (Guo et al., ICML 2017): the mean of |accuracy - confidence| over the bins, each
        weighted by its share of the pixels."""
        pixels, confidence, accuracy = self.table(bins).unbind(1)
        return ((accuracy - confidence).abs() * pixels / pixels.sum()).nansum().item()


def class_totals(matrix: Tensor) -> Tensor:
    """(..., K, K) confusion counts -> (..., K, 3) true positives, label pixels, predicted pixels."""
    return torch.stack((matrix.diagonal(dim1=-2, dim2=-1), matrix.sum(-1), matrix.sum(-2)), dim=-1)


def iou_from_totals(totals: Tensor) -> Tensor:
    """(..., K, 3) totals of `class_totals` -> (..., K) float64 IoU, NaN for classes that do not occur."""
    true_positive, label, predicted = totals.double().unbind(-1)
    return true_positive / (label + predicted - true_positive)


def boundary_mask(ids: Tensor, scored: Tensor) -> Tensor:
    """(B, H, W) ids and bool `scored` -> (B, H, W) bool: on the boundary of its class (see the module's docstring)."""
    out = torch.zeros_like(scored)
    for dim in (1, 2):
        n = ids.shape[dim] - 1
        both_scored = scored.narrow(dim, 0, n) & scored.narrow(dim, 1, n)
        edge = (ids.narrow(dim, 0, n) != ids.narrow(dim, 1, n)) & both_scored
        out.narrow(dim, 0, n).logical_or_(edge)
        out.narrow(dim, 1, n).logical_or_(edge)
    return out


def _or_shifted(out: Tensor, bits: Tensor, shift: int, dim: int) -> None:
    """out |= bits moved by `shift` pixels in both directions along `dim`, with zeros at the border."""
    n = bits.shape[dim] - shift
    if n > 0:
        out.narrow(dim, shift, n).bitwise_or_(bits.narrow(dim, 0, n))
        out.narrow(dim, 0, n).bitwise_or_(bits.narrow(dim, shift, n))


def dilate_bits(bits: Tensor, radius: float) -> Tensor:
    """Dilates (B, H, W) integer maps by a Euclidean disc, each bit separately: all classes in one pass.

    The row of a disc at distance dy from its center reaches floor(sqrt(radius^2 - dy^2)) pixels. torch dilates only by
    rectangles (`max_pool2d`), with one float map per class.
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
    """Streaming boundary F-score of a split (see the module's docstring), without host synchronization.

    num_classes: K, at most 62. tolerance: in pixels; None: the paper's 0.75 % of each image's diagonal.
    """

    def __init__(self, num_classes: int, ignore_index: int | None = None, tolerance: float | None = None):
        if num_classes > 62:
            raise ValueError(f"num_classes is {num_classes}; the boundary score packs classes into 62 bits")
        self.num_classes, self.ignore_index, self.tolerance = num_classes, ignore_index, tolerance
        self.class_sums = torch.zeros(num_classes, 2, dtype=torch.float64)  # sum of F, images where F is defined
        self.image_sums = torch.zeros(2, dtype=torch.float64)  # sum of image scores, images that have one

    def update(self, pred: Tensor, label: Tensor) -> Tensor:
        """Adds (B, H, W) integer `pred` and `label`; returns the batch's F, (B, K) float64, NaN where undefined."""
        radius = PAPER_TOLERANCE * math.hypot(*label.shape[-2:]) if self.tolerance is None else self.tolerance
        scored = torch.ones_like(label, dtype=torch.bool) if self.ignore_index is None else label != self.ignore_index
        of_pred, of_label = self._matches(pred.masked_fill(~scored, 0), label.masked_fill(~scored, 0), scored, radius)
        precision = of_pred[..., 2].double() / of_pred[..., 1:].sum(-1)  # (B, K), NaN without predicted boundary
        recall = of_label[..., 2].double() / of_label[..., 1:].sum(-1)
        f = 2 * precision * recall / (precision + recall)
        f = torch.where(precision.isnan() & recall.isnan(), f, f.nan_to_num(0.0))
        image = f.nanmean(1)  # (B,)
        self.class_sums = self.class_sums.to(f.device) + torch.stack((f.nansum(0), (~f.isnan()).sum(0)), 1)
        self.image_sums = self.image_sums.to(f.device) + torch.stack((image.nansum(), (~image.isnan()).sum()))
        return f

    def _matches(self, pred: Tensor, label: Tensor, scored: Tensor, radius: float) -> list[Tensor]:
        """(B, K, 3) counts for prediction and for label: pixels off the boundary, unmatched on it, matched on it."""
        dtype = next(d for d, b in ((torch.int16, 14), (torch.int32, 30), (torch.int64, 62)) if self.num_classes <= b)
        one = torch.ones((), dtype=dtype, device=label.device)
        on = [boundary_mask(ids, scored) for ids in (pred, label)]
        bits = [torch.bitwise_left_shift(one, ids.to(dtype)) * m for ids, m in zip((pred, label), on, strict=True)]
        counts = []
        for ids, edge, own, other in zip((pred, label), on, bits, reversed(bits), strict=True):
            near = (dilate_bits(other, radius) & own) != 0
            state = edge.to(torch.uint8) + near  # 0 off, 1 on, 2 on and matched
            counts.append(joint_histogram(ids, state, self.num_classes, 3))
        return counts

    def per_class(self) -> Tensor:
        """(K,) float64, mean F over the images where the class has a boundary; NaN where no image has one."""
        return self.class_sums[:, 0] / self.class_sums[:, 1]

    def mean(self) -> float:
        """Mean over images of the mean F over the image's classes."""
        return (self.image_sums[0] / self.image_sums[1]).item()
