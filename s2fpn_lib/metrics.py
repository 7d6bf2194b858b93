"""One int64 confusion matrix over a whole split, and every score that is read off it.

Convention: the mIoU is the mean over the classes that occur in labels or predictions; a class with zero true
positives counts 0. The published code leaves such classes out; its number is `ConfusionMatrix.published_miou`.
"""

import math

import torch
from torch import Tensor

# MERGED boundary: """Boundary F-score: how well predicted class contours follow the labelled ones.
#
# Source: Csurka, Larlus, Perronnin, "What is a good evaluation measure for semantic segmentation?", BMVC 2013.
# Exact definition used here, for each image and class c:
#
# - A pixel lies on the boundary of c if it is c and one of its four neighbours is a scored pixel of another class.
#   Pixels whose label is ignored are scored in neither map, so the edge of an unlabelled region is no boundary, and
#   neither is the image border.
# - precision = predicted boundary pixels of c that lie within `tolerance` (Euclidean, pixel centres) of a labelled
#   boundary pixel of c / predicted boundary pixels of c; recall the same with the two maps exchanged.
# - F = 2 P R / (P + R); 0 where only one of the maps has a boundary of c, undefined (left out) where neither has.
#
# The class score is the mean of F over the images where it is defined. The score of an image is the mean over its
# defined classes, and `mean()` is the mean of that over images, as in the paper. The paper's tolerance, 0.75 % of the
# image diagonal, is the default (4.5 pixels at 360 x 480).
# """


# Neighbouring pixels mostly fall into the same bin, and a CPU waits for one increment before the next to the
# same address. Neighbours therefore count into different lanes that are added up at the end (on CUDA the lanes
# spread atomic additions likewise).
CPU_LANES, CUDA_LANES = 4, 32


class UnknownIdError(ValueError):
    """A prediction or label holds an id that is neither a class nor the ignored id."""


def class_ids(scores: Tensor) -> Tensor:
    """(B, K, H, W) scores -> (B, H, W) int64 ids of the largest score.

    `max` and not `argmax`: the same ids, and about four times as fast on a CPU with the classes in dimension 1.
    """
    return scores.max(dim=1).indices


def joint_histogram(rows: Tensor, cols: Tensor, num_rows: int, num_cols: int) -> Tensor:
    """Exact two-dimensional histogram of two maps, one per image.

    `rows`, `cols`: (B, H, W) integer ids below `num_rows` and `num_cols`, same device. Returns
    (B, num_rows, num_cols) int64 on that device, with no host synchronisation on CUDA.
    """
    batch, bins = len(rows), num_rows * num_cols
    if rows.is_cuda:
        image = torch.arange(batch, device=rows.device)[:, None]  # (B, 1)
        lane = torch.arange(rows[0].numel(), device=rows.device) % CUDA_LANES  # (HW,)
        code = rows.flatten(1).long() * num_cols + cols.flatten(1)  # (B, HW)
        code += (image * CUDA_LANES + lane) * bins
        counts = torch.zeros(batch * CUDA_LANES * bins, dtype=torch.int64, device=rows.device)
        counts.scatter_add_(0, code.flatten(), counts.new_ones(1).expand(code.numel()))
        return counts.view(batch, CUDA_LANES, num_rows, num_cols).sum(1)

    dtype = torch.int16 if CPU_LANES * bins < 2**15 else torch.int32
    lane = torch.arange(CPU_LANES, dtype=dtype) * bins
    out = torch.empty(batch, num_rows, num_cols, dtype=torch.int64)
    for i in range(batch):  # image by image: the codes of one image stay in the processor's cache
        code = rows[i].flatten().to(dtype).mul_(num_cols).add_(cols[i].flatten())  # (HW,)
        whole = code.numel() // CPU_LANES * CPU_LANES
        code[:whole].view(-1, CPU_LANES).add_(lane)  # pixels past the last full group count in lane 0
        counts = torch.bincount(code, minlength=CPU_LANES * bins)
        out[i] = counts.view(CPU_LANES, num_rows, num_cols).sum(0)
    return out


class ConfusionMatrix:
    """Streaming confusion matrix: `matrix[label, prediction]` counts pixels, int64, on the tensors' device.

    num_classes: K, at most 253. ignore_index: label id that is not scored (None: every pixel is). It is the
    *label* that decides: predictions at ignored pixels are never looked at.
    """

    def __init__(self, num_classes: int, ignore_index: int | None = None):
        if not 1 <= num_classes <= 253:
            raise ValueError(f"num_classes is {num_classes}; a confusion matrix of 8-bit ids takes 1 to 253")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        # rows: K classes, foreign labels, ignored pixels; columns: K classes, foreign predictions
        self.counts = torch.zeros(num_classes + 2, num_classes + 1, dtype=torch.int64)

    def update(self, pred: Tensor, label: Tensor) -> Tensor:
        """Add a batch and return its own matrices, (B, K, K) int64, one per image.

        pred: (B, H, W) integer ids or (B, K, H, W) scores. label: (B, H, W) integer ids. A single (H, W) pair
        is a batch of one. Raises `ForeignIdError` for ids outside the classes: at once on a CPU (and nothing
        is counted then); on CUDA when the matrix is read, because looking earlier would stall the device.
        """
        if pred.dim() == label.dim() + 1:
            scores = pred if pred.dim() == 4 else pred.unsqueeze(0)
            if scores.shape[1] != self.num_classes:
                raise ValueError(
                    f"scores {tuple(pred.shape)} have {scores.shape[1]} channels, this matrix {self.num_classes}"
                    " classes; build the model with the protocol's num_classes"
                )
            pred = class_ids(scores)
        label = label if label.dim() == 3 else label.unsqueeze(0)
        pred = pred if pred.dim() == 3 else pred.unsqueeze(0)
        if pred.shape != label.shape:
            raise ValueError(
                f"prediction {tuple(pred.shape)} and label {tuple(label.shape)} differ in size;"
                " resize the logits to the label first, never the label to the logits"
            )
        if pred.is_floating_point() or label.is_floating_point():
            raise TypeError(f"ids must be integers, got {pred.dtype} predictions and {label.dtype} labels")
        counts = joint_histogram(
            self._label_rows(label), self._prediction_columns(pred), self.num_classes + 2, self.num_classes + 1
        )
        if not counts.is_cuda:
            self._refuse_foreign(counts.sum(0))
        self.counts = self.counts.to(counts.device) + counts.sum(0)
        return counts[:, : self.num_classes, : self.num_classes]

    def _label_rows(self, label: Tensor) -> Tensor:
        k, ignore = self.num_classes, self.ignore_index
        label = _bytes_if_they_fit(label)
        if label.dtype == torch.uint8:
            rows = label.clamp(max=k)
        else:
            rows = label.masked_fill((label < 0) | (label > k), k).to(torch.uint8)
        if ignore is not None and (label.dtype != torch.uint8 or 0 <= ignore <= 255):
            moved = k + 1 - (ignore if 0 <= ignore <= k else k)  # from where the ignored id stands now to row k + 1
            rows += (label == ignore).to(torch.uint8).mul_(moved)
        return rows

    def _prediction_columns(self, pred: Tensor) -> Tensor:
        k = self.num_classes
        pred = _bytes_if_they_fit(pred)
        if pred.dtype == torch.uint8:
            return pred.clamp(max=k)
        return pred.masked_fill((pred < 0) | (pred >= k), k).to(torch.uint8)

    def _refuse_foreign(self, counts: Tensor) -> None:
        k = self.num_classes
        labels, predictions = int(counts[k].sum()), int(counts[:k, k].sum())
        if labels:
            raise UnknownIdError(
                f"{labels} label pixels hold ids outside 0..{k - 1} that are not the ignored id"
                f" {self.ignore_index}; check the label's encoding (train ids?) or the protocol's ignore_id"
            )
        if predictions:
            raise UnknownIdError(
                f"{predictions} predicted pixels hold ids outside 0..{k - 1}; the prediction comes from a model"
                " with other classes, or was read from a colour or label file with another encoding"
            )

    def merge(self, other: "ConfusionMatrix") -> "ConfusionMatrix":
        """Add another matrix's counts (other process, other part of the split) and return self."""
        mine, theirs = (self.num_classes, self.ignore_index), (other.num_classes, other.ignore_index)
        if mine != theirs:
            raise ValueError(f"cannot merge matrices of different (num_classes, ignore_index): {mine}, {theirs}")
        self.counts = self.counts + other.counts.to(self.counts.device)
        return self

    @property
    def matrix(self) -> Tensor:
        """(K, K) int64, rows = label, columns = prediction; scored pixels only."""
        self._refuse_foreign(self.counts)
        return self.counts[: self.num_classes, : self.num_classes]

    @classmethod
    def from_matrix(cls, matrix: Tensor, ignore_index: int | None = None) -> "ConfusionMatrix":
        """A confusion matrix object around stored (K, K) counts."""
        out = cls(len(matrix), ignore_index)
        out.counts = out.counts.to(matrix.device)
        out.counts[: len(matrix), : len(matrix)] = matrix
        return out

    def iou(self) -> Tensor:
        """(K,) float64, TP / (TP + FP + FN); NaN where the class is in neither labels nor predictions."""
        return iou_from_totals(class_totals(self.matrix))

    def miou(self) -> float:
        """Mean IoU over the classes that occur; NaN before any scored pixel."""
        return self.iou().nanmean().item()

    def published_miou(self) -> float:
        """mIoU as the published code computes it: classes with zero true positives are left out.

        It flatters a network that never finds a class, so it is here to explain published numbers only.
        """
        iou = self.iou()
        return iou[iou > 0].mean().item()

    def pixel_accuracy(self) -> float:
        """Correct scored pixels / scored pixels."""
        matrix = self.matrix
        return (matrix.diagonal().sum().double() / matrix.sum()).item()

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


def class_totals(matrix: Tensor) -> Tensor:
    """(..., K, K) confusion counts -> (..., K, 3) true positives, label pixels, predicted pixels."""
    return torch.stack((matrix.diagonal(dim1=-2, dim2=-1), matrix.sum(-1), matrix.sum(-2)), dim=-1)


def iou_from_totals(totals: Tensor) -> Tensor:
    """(..., K, 3) totals of `class_totals` -> (..., K) float64 IoU, NaN for classes that do not occur."""
    true_positive, label, predicted = totals.double().unbind(-1)
    return true_positive / (label + predicted - true_positive)


def _bytes_if_they_fit(ids: Tensor) -> Tensor:
    """uint8 ids where that loses nothing. On CUDA as they are: looking at the values would stall the device."""
    if ids.dtype == torch.uint8 or ids.is_cuda or not ids.numel():
        return ids
    low, high = ids.aminmax()
    return ids.to(torch.uint8) if low >= 0 and high <= 255 else ids


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
