"""The optimizer that a configuration asks for, over the model's parameter groups."""

import copy
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from s2fpn_lib.config import TrainConfig

# MERGED schedule: """Learning rate: linear warm-up, then polynomial decay, stepped once an iteration.
#
# The closed form is the whole schedule: the rate of step k depends on nothing but k, so a resumed run needs no
# scheduler state beyond its step. Source: the published recipe (500 warm-up iterations from lr/3, poly 0.9), whose code
# rebuilds the scheduler every step and thereby computes exactly this function.
# """
# MERGED ema: """Exponential moving average of a model's weights (Polyak averaging), used for validation and for what is saved."""


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Adam (weight decay as L2 penalty, as published), AdamW or SGD with momentum; fused into one kernel a group."""
    groups = parameter_groups(model, config)
    fused = next(model.parameters()).device.type in ("cpu", "cuda")
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=config.momentum, fused=fused)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, fused=fused)


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Encoder and decoder parameters with their learning rates, the decoder last; without `decay_all` each again apart
    in weights with decay and one-dimensional parameters (biases, normalisation, slopes, gates) without."""
    groups = []
    for part, parameters in model.parameter_groups().items():
        lr = config.encoder_lr if part == "encoder" and config.encoder_lr else config.lr
        decayed = [p for p in parameters if config.decay_all or p.ndim > 1]
        exempt = [p for p in parameters if not config.decay_all and p.ndim <= 1]
        groups += [
            {"params": chosen, "lr": lr, "weight_decay": decay}
            for chosen, decay in ((decayed, config.weight_decay), (exempt, 0.0))
            if chosen
        ]
    return groups


def warmup_poly(step: int, *, total: int, warmup: int, start_factor: float = 1 / 3, power: float = 0.9) -> float:
    """Factor on the base learning rate for step `step` (0 is the first optimizer step).

    step <= warmup:  start + (1 - start) * step / warmup
    step >  warmup:  (1 - (step - warmup) / (total - warmup)) ** power, 0 from `total` on

    Args:
        step: number of optimizer steps already done.
        total: steps of the whole run.
        warmup: length of the warm-up in steps, less than `total`; 0 starts at the full rate.
        start_factor: factor at step 0 of the warm-up.
        power: exponent of the decay.

    Raises:
        ValueError: `total` is not positive, or the warm-up does not end before the run does.
    """
    if total <= 0:
        raise ValueError(f"total is {total} steps; a schedule needs at least one")
    if not 0 <= warmup < total:
        raise ValueError(
            f"warmup is {warmup} steps of {total} in all; it must end before the run does: "
            f"shorten it (see fit_warmup) or train longer"
        )
    if warmup and step <= warmup:
        progress = step / warmup
        return start_factor * (1 - progress) + progress
    return max(0.0, 1 - (step - warmup) / (total - warmup)) ** power


def fit_warmup(warmup: int, total: int) -> int:
    """The warm-up that a run of `total` steps takes: `warmup`, but never more than a tenth of the run.

    The published 500 iterations are 6 % of its CamVid run; a run of minutes would otherwise end while still warming up.
    """
    return min(warmup, total // 10)


def warmup_poly_schedule(
    optimizer: Optimizer, *, total: int, warmup: int, start_factor: float = 1 / 3, power: float = 0.9
) -> LambdaLR:
    """`warmup_poly` as a torch scheduler; call `.step()` after every optimizer step.

    Every parameter group keeps its own base rate, so an encoder with a smaller one follows the same curve.
    """
    factor = partial(warmup_poly, total=total, warmup=warmup, start_factor=start_factor, power=power)
    return LambdaLR(optimizer, factor)


class ExponentialMovingAverage:
    """Keeps `self.model`, an eval-mode copy of `model` whose weights follow the trained ones.

    average <- d_t * average + (1 - d_t) * weights,   d_t = min(decay, (1 + t) / (10 + t))   at step t

    The ramp keeps the random initialisation out of the average of a short run. Running statistics of BatchNorm are
    averaged too, so that they belong to the averaged weights; integer buffers are copied.

    Args:
        model: the trained model; its modules must not be replaced afterwards.
        decay: the decay reached after the ramp, in (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float):
        if not 0 < decay < 1:
            raise ValueError(f"ema decay is {decay}; it must lie between 0 and 1 (0.999 is usual, leave EMA off for 0)")
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        pairs = list(zip(self.model.state_dict().values(), model.state_dict().values(), strict=True))
        self._averaged, self._weights = self._lists(pairs, floating=True)
        self._copies, self._originals = self._lists(pairs, floating=False)

    @staticmethod
    def _lists(pairs: list, *, floating: bool) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        chosen = [(mine, theirs) for mine, theirs in pairs if mine.is_floating_point() == floating]
        return [mine for mine, _ in chosen], [theirs for _, theirs in chosen]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights after optimizer step `step` (0 for the first), without a host sync."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averaged, self._weights, 1 - decay)
        if self._copies:
            torch._foreach_copy_(self._copies, self._originals)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return self.model.state_dict()

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.model.load_state_dict(state)
