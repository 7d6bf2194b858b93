"""Number of parameters and of multiply-accumulates of a network."""

from dataclasses import dataclass
from itertools import chain

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from s2fpn_lib.model.tta import evaluation_mode


@dataclass(frozen=True)
class Complexity:
    """One MAC is two floating-point operations; papers that print "FLOPs" often mean MACs. Convolutions and matrix
    products are counted; batch norms, activations, and resizes are not, as is customary."""

    parameters: int  # those used in inference (auxiliary heads excluded)
    macs: int  # multiply-accumulates for one image

    @property
    def megaparameters(self) -> float:
        return self.parameters / 1e6

    @property
    def gigamacs(self) -> float:
        return self.macs / 1e9


def measure_complexity(model: nn.Module, size: tuple[int, int] = (512, 1024)) -> Complexity:
    """Count `model` on one image of `size` = (height, width), by running it once in evaluation mode without values."""
    parameters = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("auxiliary."))
    return Complexity(parameters, _count(model, size).get_total_flops() // 2)


def macs_by_part(model: nn.Module, size: tuple[int, int] = (512, 1024)) -> dict[str, int]:
    """Multiply-accumulates of each child of `model` that has any, for one image of `size` = (height, width)."""
    counts = _count(model, size).get_flop_counts()
    names = [name for name, _ in model.named_children()]
    macs = {name: sum(counts.get(f"{type(model).__name__}.{name}", {}).values()) // 2 for name in names}
    return {name: count for name, count in macs.items() if count}


def _count(model: nn.Module, size: tuple[int, int]) -> FlopCounterMode:
    # Tensors on the meta device have shapes but no values, so that nothing is computed
    shapes = {name: tensor.to("meta") for name, tensor in chain(model.named_parameters(), model.named_buffers())}
    with evaluation_mode(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
        functional_call(model, shapes, torch.zeros(1, 3, *size, device="meta"))
    return counter
