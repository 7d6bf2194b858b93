"""One training step the way the published code does it: the baseline of the training benchmark, used for nothing else.

As train.py of github.com/mohamedac29/S2-FPN has it: contiguous layout, five logits maps resized to the label, one
weighted cross-entropy each, PyTorch's plain Adam, a scheduler made anew in every step, and `loss.item()` after it.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from s2fpn_lib.config import TrainConfig
from s2fpn_lib.model import S2FPN
from s2fpn_lib.schedule import warmup_poly


class PublishedStep:
    """`step(images, labels)` trains a contiguous copy of `model` on one batch and returns the loss.

    images: (B, 3, h, w) float32, as the published loader hands them over; labels: (B, h, w) int64. config: for the
    optimizer's and the schedule's numbers. total: steps of the run.
    """

    def __init__(
        self, model: S2FPN, config: TrainConfig, class_weights: Tensor | None, *, ignore_index: int, total: int
    ) -> None:
        self.model = copy.deepcopy(model).to(memory_format=torch.contiguous_format).train()
        self.config, self.total, self.ignore_index = config, total, ignore_index
        self.class_weights = class_weights
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        self.done = 0
        self.losses: list[float] = []

    def __call__(self, images: Tensor, labels: Tensor) -> float:
        logits, auxiliary = self.model(images, aux=True)  # all five at the label's size
        loss = sum(self._cross_entropy(each, labels) for each in (logits, *auxiliary))
        self.optimizer.zero_grad()
        loss.backward()
        scheduler = self._schedule()
        self.optimizer.step()
        scheduler.step()
        self.done += 1
        self.losses.append(loss.item())
        return self.losses[-1]

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, self.class_weights, ignore_index=self.ignore_index)

    def _schedule(self) -> LambdaLR:
        """Made again in every step, as published; the rate is the one of `schedule.warmup_poly_schedule`."""
        config = self.config
        for group in self.optimizer.param_groups:
            group["initial_lr"] = config.lr

        def factor(step: int) -> float:
            return warmup_poly(
                step, total=self.total, warmup=config.warmup, start_factor=config.warmup_start, power=config.poly_power
            )

        return LambdaLR(self.optimizer, factor, last_epoch=self.done - 1)
