"""How the published code runs inference and scores it: the baselines of the benchmarks, used for nothing else.

As the scripts of github.com/mohamedac29/S2-FPN do it; the README's "Coming from the published code" says what the
workbench does instead. The training step is in `published_step`, the loader in `published_loader`.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn


class PublishedInference:
    """`run(x)` -> logits (B, K, H, W), after four auxiliary heads and four more full-size interpolations that nobody
    reads, in contiguous layout with batch norms unfolded.

    grad: as published, forward passes record a graph for a backward pass that never comes; False spares it that.
    """

    def __init__(self, model: nn.Module, *, grad: bool = True) -> None:
        self.model = copy.deepcopy(model).to(memory_format=torch.contiguous_format).eval()
        self.grad = grad

    def __call__(self, x: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.set_grad_enabled(self.grad):
            logits, _ = self.model(x.contiguous(), aux=True)
        return logits.detach()


def eval_fps(run: Callable[[Tensor], Tensor], x: Tensor, *, warmup: int, calls: int) -> float:
    """Frames per second as eval_fps.py takes it: a fixed warm-up, then `calls` calls by the clock, their mean."""
    for _ in range(warmup):
        run(x)
    _wait(x)
    start = time.perf_counter()
    for _ in range(calls):
        run(x)
    _wait(x)
    return calls * len(x) / (time.perf_counter() - start)


def pixel_loop_matrix(pred: np.ndarray, label: np.ndarray, num_classes: int) -> np.ndarray:
    """(K, K) int64 confusion counts, rows = label, of (H, W) ids by the published metric's loop over pixels.

    Label ids from `num_classes` on are not scored.
    """
    matrix = np.zeros((num_classes, num_classes), dtype=np.int64)
    for truth, guess in zip(label.flatten(), pred.flatten(), strict=True):
        if truth < num_classes:
            matrix[truth, guess] += 1
    return matrix


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
