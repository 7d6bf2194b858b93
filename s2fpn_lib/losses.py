"""The training loss, with deep supervision, online hard example mining, the Lovász term, and distillation.

    loss = L(logits, label) + aux_weight * sum_i L(aux_i, label) + lovasz_weight * lovasz_softmax(logits, label)

Published: L is cross-entropy weighted by 1 / ln(1.10 + share), and all five terms have weight 1 and the label's size.
Distillation adds `distillation_loss` against a teacher's logits as a further term.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from s2fpn_lib.distributed import mean_over_processes
from s2fpn_lib.model.blocks import resize_like

CRITERIA = ("cross_entropy", "ohem")
AUX_RESOLUTIONS = ("label", "own")


class DeepSupervisionLoss(nn.Module):
    """Sum of the main loss and the weighted auxiliary losses.

    Each term is the weighted mean of torch's cross-entropy, sum(w[y] * ce) / sum(w[y]), over the pixels that are not
    ignored, or 0 where every pixel is ignored. The arithmetic is float32 under any autocast.

    Where several processes share a batch, each divides its part's sum by the mean of all parts' sums of weights, so
    that the mean of their losses and gradients is that of one process on the whole batch. OHEM's k-th hardest pixel and
    the Lovász term are those of each process's own part.

    A label id that is neither a class nor `ignore_index` raises a ValueError on a CPU. On CUDA, where raising would
    need a host synchronization, the loss becomes NaN, and the training loop calls `check_labels` for the message.

    Args:
        ignore_index: label id left out of the loss.
        class_weights: (K,) weights; None for equal weights.
        aux_weight: weight of each auxiliary term.
        criterion: "cross_entropy", or "ohem", which keeps the pixels whose true class is at most `ohem_threshold`
            probable, and at least the share `ohem_min_kept` of all pixels, the hardest ones.
        aux_resolution: "label" (published) resizes auxiliary logits to the label, bilinear with align_corners=True;
            "own" takes every k-th label pixel instead, which needs a fraction of the time and memory.
        lovasz_weight: weight of the Lovász-softmax term of the main logits on every second pixel of every second row.
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
        self.ignore_index, self.criterion, self.aux_resolution = ignore_index, criterion, aux_resolution
        self.aux_weight, self.lovasz_weight = aux_weight, lovasz_weight
        self.ohem_threshold, self.ohem_min_kept = ohem_threshold, ohem_min_kept
        weights = None if class_weights is None else torch.as_tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, outputs: Tensor | tuple[Tensor, Sequence[Tensor]], label: Tensor) -> Tensor:
        """Scalar loss of ((B,K,h,w) logits, [(B,K,h_i,w_i) auxiliary logits]), or logits alone, for (B,H,W) labels."""
        logits, auxiliary = (outputs, ()) if isinstance(outputs, Tensor) else outputs
        target = label.long()
        unknown = ((target < 0) | (target >= logits.shape[1])) & (target != self.ignore_index)
        if not unknown.is_cuda and unknown.any():
            self.check_labels(label, logits.shape[1])
        target = target.masked_fill(unknown, self.ignore_index)
        kept = target != self.ignore_index
        weight = kept.float() if self.class_weights is None else self.class_weights[target.masked_fill(~kept, 0)] * kept
        loss = self._term(logits, target, weight) + torch.where(unknown.any(), math.nan, 0.0)
        if self.lovasz_weight:  # sorts the pixels once per class
            logits = resize_like(logits.float(), target)
            lovasz = lovasz_softmax(logits[..., ::2, ::2], target[..., ::2, ::2], self.ignore_index)
            loss = loss + self.lovasz_weight * lovasz
        for aux in auxiliary:
            pixels = target, weight
            if self.aux_resolution == "own":
                pixels = [_subsample(each, aux.shape[-2:]) for each in pixels]
            loss = loss + self.aux_weight * self._term(aux, *pixels)
        return loss

    def check_labels(self, label: Tensor, num_classes: int) -> None:
        """Raises a ValueError naming the ids in `label` that are neither a class nor ignored. Syncs with the device."""
        if unknown := sorted({*torch.unique(label).tolist()} - {*range(num_classes), self.ignore_index}):
            raise ValueError(
                f"label ids {unknown} are neither one of the {num_classes} classes (0..{num_classes - 1}) nor the "
                f"ignored id {self.ignore_index}: audit the dataset (s2fpn_lib.data.check_dataset) or fix ignore_index"
            )

    def _term(self, logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """Loss of one (B,K,h,w) logits map for (B,H,W) labels and their weights, resized where the sizes differ."""
        kept = target != self.ignore_index
        if self.criterion == "cross_entropy" and logits.device.type == "cpu" and logits.requires_grad:
            total = _WeightedCrossEntropy.apply(logits.float(), target.masked_fill(~kept, 0), weight)
            return total / _divisor(weight.sum())
        logits = resize_like(logits.float(), target)
        if self.criterion == "ohem":
            error = F.cross_entropy(logits, target, ignore_index=self.ignore_index, reduction="none")  # (B, H, W)
            weight = weight * self._hard(error.detach(), kept)
            return (weight * error).sum() / _divisor(weight.sum())
        total = F.cross_entropy(logits, target, self.class_weights, ignore_index=self.ignore_index, reduction="sum")
        return total / _divisor(weight.sum())

    def _hard(self, error: Tensor, valid: Tensor) -> Tensor:
        """Pixels that OHEM keeps, (B, H, W)."""
        probability = torch.exp(-error).masked_fill(~valid, 2.0)  # of the true class; 2 keeps all of fewer than k
        threshold = torch.full((), self.ohem_threshold, device=error.device)
        if k := int(self.ohem_min_kept * error.numel()):  # a share of all pixels, so that it is known on the host
            threshold = torch.maximum(threshold, probability.flatten().kthvalue(k).values)
        return probability <= threshold


class _WeightedCrossEntropy(torch.autograd.Function):
    """Scalar sum(w * ce) of (B,K,h,w) logits, resized to (B,H,W) target ids, with pixel weights w (B,H,W).

    For a CPU, where memory limits this loss: the gradient is computed with the loss, image by image in the processor's
    cache, and no map of the label's size is kept.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        sides = zip(logits.shape[2:], target.shape[1:], strict=True)
        rows, columns = (  # (h, H) and (w, W): resize(x) = rows.T @ x @ columns
            F.interpolate(torch.eye(small)[None], large, mode="linear", align_corners=True)[0] for small, large in sides
        )
        total, gradients = torch.zeros(()), []
        with torch.autocast("cpu", enabled=False):
            for x, y, w in zip(logits.contiguous(), target[:, None], weight[:, None], strict=True):
                values = resize_like(x[None], y)[0].log_softmax(0)  # (K, H, W)
                total -= (w * values.gather(0, y)).sum()
                values.exp_().scatter_add_(0, y, values.new_full((), -1.0).expand(y.shape)).mul_(w)
                gradients.append(rows @ values @ columns.T)
        ctx.save_for_backward(torch.stack(gradients))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradient * ctx.saved_tensors[0], None, None


def _divisor(total: Tensor) -> Tensor:
    """Divisor of a weighted mean from this process's sum of weights; 1 for an empty sum, whose numerator is 0."""
    total = mean_over_processes(total)
    return torch.where(total > 0, total, 1.0)


def _subsample(label: Tensor, size: tuple[int, int]) -> Tensor:
    """(B,H,W) labels -> (B,h,w), pixel floor(i * H / h), on which 3x3 convolutions with padding 1 center pixel i of a
    feature map. `F.interpolate` takes no integer labels."""
    sides = zip(size, label.shape[-2:], strict=True)
    rows, columns = (torch.arange(small, device=label.device) * large // small for small, large in sides)
    return label[:, rows[:, None], columns]


def lovasz_softmax(logits: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """Scalar: the Lovász extension of the Jaccard loss, averaged over the classes that occur in `target`.

    For class c each pixel has an error m = |[y = c] - p_c|. With the pixels sorted by decreasing error, and S_i the
    first i of them counted as mistakes,

        loss_c = sum_i m_i (J(S_i) - J(S_i-1)),   J(S) = 1 - |true c without S| / |true c or S|

    so it is 1 - IoU of the class where all probabilities are 0 or 1. The whole batch of logits (B, K, H, W) and targets
    (B, H, W) int64, in 0..K-1 or `ignore_index`, counts as one image. Needs no host synchronization.

    Source: Berman, Triki, Blaschko, "The Lovász-Softmax loss", CVPR 2018, equations 8 to 11 and algorithm 1.
    """
    probabilities = logits.float().softmax(1)
    valid = target != ignore_index
    losses, present = [], []
    for c in range(logits.shape[1]):
        truth = target == c
        # an ignored pixel has error 0: sorted last, and times 0 in the sum
        errors = ((truth.float() - probabilities[:, c]).abs() * valid).flatten()
        errors, order = errors.sort(descending=True)
        truth = truth.flatten()[order]
        mistaken = truth.cumsum(0)  # true pixels among the first i; int64, for float32 cannot count beyond 2**24
        union = mistaken[-1] + (~truth).cumsum(0)
        jaccard = 1 - (mistaken[-1] - mistaken) / union.clamp(min=1)
        losses.append(errors @ jaccard.diff(prepend=jaccard.new_zeros(1)))
        present.append(mistaken[-1] > 0)
    weight = torch.stack(present).float()
    return (torch.stack(losses) * weight).sum() / weight.sum().clamp(min=1)


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Scalar T² KL(softmax(teacher / T) || softmax(student / T)), the mean over all pixels, labeled or not.

    (B,K,h,w) student logits are resized to the teacher's (B,K,H,W), bilinear with align_corners=True as the network
    resizes its own. The arithmetic is float32.

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, section 2; per
    pixel as in Liu et al., "Structured Knowledge Distillation for Semantic Segmentation", CVPR 2019, equation 1.
    """
    student = resize_like(student.float(), teacher) / temperature
    target = (teacher.float() / temperature).log_softmax(1)
    divergence = F.kl_div(student.log_softmax(1), target, reduction="none", log_target=True)
    return temperature**2 * divergence.sum(1).mean()
