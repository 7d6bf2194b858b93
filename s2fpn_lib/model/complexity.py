"""How large and how costly a network is: parameters of the inference path and multiply-accumulates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Complexity:
    """parameters: those that inference uses (auxiliary heads excluded). macs: multiply-accumulates of one image.

    A MAC is two floating-point operations; papers that print "FLOPs" often mean MACs. Counted are convolutions and
    matrix products; batch norm, activations and resizes are not, as is the custom.
    """

    parameters: int
    macs: int

    @property
    def megaparameters(self) -> float:
        return self.parameters / 1e6

    @property
    def gigamacs(self) -> float:
        return self.macs / 1e9


def inference_parameters(model: nn.Module) -> int:
    """The number of learned values that a forward pass without auxiliary heads reads."""
    return sum(p.numel() for name, p in model.named_parameters() if not name.startswith("auxiliary."))


def measure_complexity(model: nn.Module, size: tuple[int, int] = (512, 1024)) -> Complexity:
    """Count `model` on one image of `size` = (height, width), by running it once in evaluation mode on its device."""
    return Complexity(inference_parameters(model), _count(model, size).get_total_flops() // 2)


def macs_by_part(model: nn.Module, size: tuple[int, int] = (512, 1024)) -> dict[str, int]:
    """Multiply-accumulates of each direct part of `model` that does any, for one image of `size` = (height, width)."""
    counts = _count(model, size).get_flop_counts()
    prefix = f"{type(model).__name__}."
    return {
        name: sum(counts[prefix + name].values()) // 2
        for name, _ in model.named_children()
        if sum(counts.get(prefix + name, {}).values())
    }


def _count(model: nn.Module, size: tuple[int, int]) -> FlopCounterMode:
    """The counter after one forward pass in evaluation mode; torch counts a multiply-accumulate as two operations."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, 3, *size, device=device))
    finally:
        model.train(was_training)
    return counter
