"""The training loss: class-weighted cross-entropy on the main logits and on every auxiliary logits map, summed.

    loss = L(logits, label) + aux_weight * sum_i L(aux_i, label) + lovasz_weight * lovasz_softmax(logits, label)

Published: L is cross-entropy weighted by 1 / ln(1.10 + share), five terms of weight 1, every map resized to the label.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2fpn_lib.data import SegmentationDataset, label_counts
from s2fpn_lib.distributed import mean_over_processes
from s2fpn_lib.lovasz import lovasz_softmax

PUBLISHED_WEIGHT_CONSTANT = 1.10
CRITERIA = ("cross_entropy", "ohem")
AUX_RESOLUTIONS = ("label", "own")
LOVASZ_STRIDE = 2  # of the label pixels that the Lovász term sorts, in both directions


class DeepSupervisionLoss(nn.Module):
    """Sum of the main loss and the weighted auxiliary losses.

    Each term is the weighted mean that torch's cross-entropy takes, sum(w[y] * ce) / sum(w[y]), over the pixels that
    are not ignored; it is 0 with a zero gradient, not NaN, where every pixel is ignored. The arithmetic is float32
    under any autocast.

    Where several processes share a batch, each divides its part's sum by the mean of all parts' sums of weights: the
    mean of the processes' losses, and of their gradients, is then what one process finds on the whole batch, however
    the ignored pixels lie. OHEM's k-th hardest pixel and the Lovász term are those of each process's own part.

    A label id that is neither a class nor `ignore_index` raises a ValueError on the CPU. On CUDA raising would need a
    host sync (and the kernel's own assert would take the process's context with it), so there the loss becomes NaN: the
    training loop finds it and asks `check_labels` for the message. The data audit finds such files before training.

    Args:
        ignore_index: label id left out of the loss.
        class_weights: (K,) weights, None for 1.
        aux_weight: weight of each auxiliary term.
        criterion: "cross_entropy", or "ohem": online hard example mining, which keeps the pixels whose probability of
            the true class is at most `ohem_threshold`, and never fewer than the `ohem_min_kept` hardest (more where
            several tie with the last of them).
        aux_resolution: "label" (published) resizes auxiliary logits to the label, bilinear with align_corners=True;
            "own" takes every k-th label pixel instead, which costs a fraction of the time and memory.
        ohem_threshold: probability above which a pixel counts as easy.
        ohem_min_kept: least share of all pixels of the batch to keep, in [0, 1].
        lovasz_weight: weight of the Lovász-softmax term of the main logits, taken at every second label pixel and row
            because it sorts the pixels once a class.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        ignore_index: int,
        class_weights: Tensor | Sequence[float] | None = None,
        aux_weight: float = 1.0,
        *,
        criterion: str = "cross_entropy",
        aux_resolution: str = "label",
        ohem_threshold: float = 0.7,
        ohem_min_kept: float = 1 / 16,
        lovasz_weight: float = 0.0,
    ):
        super().__init__()
        if criterion not in CRITERIA:
            raise ValueError(f"criterion is {criterion!r}; choose one of {', '.join(CRITERIA)}")
        if aux_resolution not in AUX_RESOLUTIONS:
            raise ValueError(f"aux_resolution is {aux_resolution!r}; choose one of {', '.join(AUX_RESOLUTIONS)}")
        if not 0 <= ohem_min_kept <= 1:
            raise ValueError(f"ohem_min_kept is {ohem_min_kept}; it is a share of the batch's pixels, from 0 to 1")
        self.ignore_index = ignore_index
        self.aux_weight = aux_weight
        self.criterion = criterion
        self.aux_resolution = aux_resolution
        self.ohem_threshold = ohem_threshold
        self.ohem_min_kept = ohem_min_kept
        self.lovasz_weight = lovasz_weight
        weights = None if class_weights is None else torch.as_tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, outputs: Tensor | tuple[Tensor, Sequence[Tensor]], label: Tensor) -> Tensor:
        """Scalar loss of ((B,K,h,w) logits, [(B,K,h_i,w_i) auxiliary logits]) for (B,H,W) uint8 or int64 labels.

        Bare logits instead of the pair count as no auxiliary logits.
        """
        logits, auxiliary = (outputs, ()) if isinstance(outputs, Tensor) else outputs
        target, poison = self._target(label, num_classes=logits.shape[1])
        logits = _resized(logits, target)
        loss = self._term(logits, target) + poison
        if self.lovasz_weight:
            thin = (..., slice(None, None, LOVASZ_STRIDE), slice(None, None, LOVASZ_STRIDE))
            loss = loss + self.lovasz_weight * lovasz_softmax(logits[thin], target[thin], self.ignore_index)
        for aux in auxiliary:
            aux_target = target if self.aux_resolution == "label" else _subsample(target, aux.shape[-2:])
            loss = loss + self.aux_weight * self._term(aux, aux_target)
        return loss

    def check_labels(self, label: Tensor, num_classes: int) -> None:
        """Raises a ValueError naming the ids in `label` that are neither a class nor ignored. Syncs with the device."""
        ids = torch.unique(label).tolist()
        foreign = [i for i in ids if i != self.ignore_index and not 0 <= i < num_classes]
        if foreign:
            raise ValueError(
                f"label ids {foreign} are neither one of the {num_classes} classes (0..{num_classes - 1}) nor the "
                f"ignored id {self.ignore_index}: audit the dataset (s2fpn_lib.data.check_dataset) or mend ignore_index"
            )

    def _target(self, label: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
        """int64 labels with foreign ids ignored, and a scalar to add to the loss: NaN where there were any, else 0."""
        target = label.long()
        foreign = ((target < 0) | (target >= num_classes)) & (target != self.ignore_index)
        if not foreign.is_cuda and foreign.any():
            self.check_labels(label, num_classes)
        poison = torch.where(foreign.any(), math.nan, 0.0)
        return target.masked_fill(foreign, self.ignore_index), poison

    def _term(self, logits: Tensor, target: Tensor) -> Tensor:
        """Loss of one logits map (B,K,h,w) against labels (B,H,W), resized to them where the sizes differ."""
        logits = _resized(logits, target)
        valid = target != self.ignore_index
        if self.criterion == "ohem":
            error = F.cross_entropy(logits, target, ignore_index=self.ignore_index, reduction="none")  # (B, H, W)
            weight = self._pixel_weights(target, valid & self._hard(error.detach(), valid))
            return (weight * error).sum() / _divisor(weight.sum())
        total = F.cross_entropy(logits, target, self.class_weights, ignore_index=self.ignore_index, reduction="sum")
        return total / _divisor(self._pixel_weights(target, valid).sum())

    def _pixel_weights(self, target: Tensor, kept: Tensor) -> Tensor:
        """w[y] where kept, else 0: (B, H, W)."""
        if self.class_weights is None:
            return kept.float()
        return self.class_weights[target.masked_fill(~kept, 0)] * kept

    def _hard(self, error: Tensor, valid: Tensor) -> Tensor:
        """Pixels that OHEM keeps, (B, H, W).

        k is a share of *all* pixels, so known on the host: with fewer than k valid pixels the k-th smallest probability
        is an ignored pixel's 2, and all valid ones are kept without asking the device how many there are.
        """
        probability = torch.exp(-error).masked_fill(~valid, 2.0)  # of the true class
        threshold = torch.full((), self.ohem_threshold, device=error.device)
        if k := int(self.ohem_min_kept * error.numel()):
            threshold = torch.maximum(threshold, probability.flatten().kthvalue(k).values)
        return probability <= threshold


def _resized(logits: Tensor, target: Tensor) -> Tensor:
    """float32 logits (B,K,H,W) at the size of labels (B,H,W)."""
    logits = logits.float()
    if logits.shape[-2:] == target.shape[-2:]:
        return logits
    return F.interpolate(logits, target.shape[-2:], mode="bilinear", align_corners=True)


def _divisor(total: Tensor) -> Tensor:
    """The divisor of a weighted mean, from this process's sum of weights; 1 for an empty one, whose numerator is 0."""
    total = mean_over_processes(total)
    return torch.where(total > 0, total, 1.0)


def _subsample(label: Tensor, size: tuple[int, int]) -> Tensor:
    """Labels (B,H,W) -> (B,h,w), pixel floor(i * H / h): a stride-s feature map of 3x3 convolutions with padding 1 is
    centred on input pixel s * i, not on the middle of its s x s block."""
    height, width = label.shape[-2:]
    rows = torch.arange(size[0], device=label.device) * height // size[0]
    columns = torch.arange(size[1], device=label.device) * width // size[1]
    return label[:, rows[:, None], columns]  # (B, h, w)


def class_weights_from(dataset: SegmentationDataset, rule: str | float = "published") -> Tensor:
    """(K,) float32 class weights 1 / ln(c + share), share = the class's part of all labelled pixels (ENet's rule).

    Args:
        dataset: `open_dataset(...)`; every label is read once.
        rule: "published" (c = 1.10), or c itself, above 1 so that an absent class still has a finite weight.

    Raises:
        ValueError: c is not above 1, a label holds a foreign id (the sample is named), or no pixel is labelled.
    """
    constant = PUBLISHED_WEIGHT_CONSTANT if rule == "published" else rule
    if isinstance(constant, str) or constant <= 1:
        raise ValueError(
            f'class weight rule is {rule!r}; use "published" or the c of 1/ln(c + share), a number above 1'
        )
    pixels = class_pixels(dataset)
    if not pixels.any():
        raise ValueError(f"no pixel of {dataset.name} {dataset.split} carries a class: class weights are undefined")
    share = pixels.double() / pixels.sum()
    return (1 / torch.log(constant + share)).float()


def class_pixels(dataset: SegmentationDataset) -> Tensor:
    """(K,) int64 number of pixels of each class over the dataset's labels, ignored pixels left out."""
    protocol = dataset.protocol
    counts = torch.from_numpy(label_counts(dataset))  # (samples, 256)
    foreign = counts.bool()
    foreign[:, list(protocol.label_ids)] = False
    if foreign.any():
        sample, label_id = foreign.nonzero()[0].tolist()
        raise ValueError(
            f"label of {dataset.names[sample]} ({dataset.name} {dataset.split}) holds the id {label_id}; "
            f"{protocol.name} knows 0..{protocol.num_classes - 1} and the ignored id {protocol.ignore_id}"
        )
    return counts.sum(0)[: protocol.num_classes]
