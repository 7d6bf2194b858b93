"""The Lovász-softmax loss: a surrogate of mean IoU itself, to add to cross-entropy for thin and rare classes."""

import torch
from torch import Tensor


def lovasz_softmax(logits: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """Scalar: the Lovász extension of the Jaccard loss, averaged over the classes that occur in `target`.

    For class c every pixel has an error m = |[y = c] - p_c|. With the pixels sorted by falling error, and S_i the first
    i of them counted as mistakes,

        loss_c = sum_i m_i (J(S_i) - J(S_i-1)),   J(S) = 1 - |true c without S| / |true c or S|

    so 1 - IoU of the class where all probabilities are 0 or 1. The whole batch counts as one image. Without a class in
    `target` the loss is 0. Needs no host sync.

    Args:
        logits: (B, K, H, W).
        target: (B, H, W) int64, in 0..K-1 or `ignore_index`.

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
        losses.append(errors @ _jaccard_steps(truth.flatten()[order]))
        present.append(truth.any())
    weight = torch.stack(present).float()
    return (torch.stack(losses) * weight).sum() / weight.sum().clamp(min=1)


def _jaccard_steps(truth: Tensor) -> Tensor:
    """J(S_i) - J(S_i-1) for i = 1..N, (N,) float32, of (N,) bool truth in the order of falling error."""
    mistaken = truth.cumsum(0)  # true pixels among the first i; int64, for float32 cannot count beyond 2**24
    intersection = mistaken[-1] - mistaken
    union = mistaken[-1] + (~truth).cumsum(0)
    jaccard = 1 - (intersection / union.clamp(min=1))
    return jaccard.diff(prepend=jaccard.new_zeros(1))
