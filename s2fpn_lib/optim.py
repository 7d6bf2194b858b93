"""Optimizer with parameter groups, learning-rate schedule, and exponential moving average of the weights."""

import copy

import torch
from torch import nn
from torch.optim import Optimizer

OPTIMIZERS = ("adam", "adamw", "sgd")


def build_optimizer(
    model: nn.Module,
    name: str,
    *,
    lr: float,
    encoder_lr: float = 0.0,
    weight_decay: float = 0.0,
    decay_all: bool = True,
    momentum: float = 0.9,
) -> Optimizer:
    """Adam (weight decay as an L2 penalty, as published), AdamW, or SGD with momentum, as fused kernels.

    model: an S2FPN. lr: of the decoder, and of the encoder where `encoder_lr` is 0. decay_all: False excludes
    one-dimensional parameters (biases, normalization, slopes, gates) from weight decay.
    """
    groups = []
    for encoder in (True, False):
        parameters = [p for key, p in model.named_parameters() if key.startswith("encoder.") == encoder]
        rate = encoder_lr if encoder and encoder_lr else lr
        for decayed, decay in ((True, weight_decay), (False, 0.0)):
            if chosen := [p for p in parameters if (decay_all or p.ndim > 1) == decayed]:
                groups.append({"params": chosen, "lr": rate, "weight_decay": decay})
    if name == "sgd":
        return torch.optim.SGD(groups, momentum=momentum, fused=True)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name](groups, fused=True)


def warmup_poly(step: int, *, total: int, warmup: int, start_factor: float = 1 / 3, power: float = 0.9) -> float:
    """Factor on the base learning rate after `step` optimizer steps: linear warm-up, then polynomial decay.

        step <= warmup:  start_factor + (1 - start_factor) * step / warmup
        step >  warmup:  (1 - (step - warmup) / (total - warmup)) ** power, and 0 from `total` on

    The published recipe uses 500 warm-up iterations from lr/3 and power 0.9. Raises ValueError unless the warm-up is
    shorter than the run.
    """
    if not 0 <= warmup < total:
        raise ValueError(f"warmup is {warmup} steps of {total}; it must be shorter than the run")
    if warmup and step <= warmup:
        progress = step / warmup
        return start_factor * (1 - progress) + progress
    return max(0.0, 1 - (step - warmup) / (total - warmup)) ** power


class ExponentialMovingAverage:
    """`self.model` is a copy of `model` in evaluation mode whose weights follow the trained ones.

        average <- d_t * average + (1 - d_t) * weights,   d_t = min(decay, (1 + t) / (10 + t))   after step t

    The ramp of d_t keeps the random initialization out of the average of a short run. Running statistics of BatchNorm
    are averaged, too; integer buffers are copied. `torch.optim.swa_utils.AveragedModel` counts its updates on the
    device, so a decay that depends on t would synchronize in every step. Modules of `model` must not be replaced later.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        pairs = list(zip(self.model.state_dict().values(), model.state_dict().values(), strict=True))
        self._floating = [pair for pair in pairs if pair[0].is_floating_point()]
        self._integer = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Includes the weights after optimizer step `step` (0 is the first), without a host synchronization."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages, weights = zip(*self._floating, strict=True)
        torch._foreach_lerp_(averages, weights, 1 - decay)
        for copied, original in self._integer:
            copied.copy_(original)
