"""The same function with less arithmetic: folded batch norms, no auxiliary heads, 1x1 convolutions before resizes."""

import copy
import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from s2fpn_lib.model import S2FPN
from s2fpn_lib.model.apf import APF, FRB
from s2fpn_lib.model.blocks import resize_like
from s2fpn_lib.model.gfu import GFUv1
from s2fpn_lib.model.ssam import StripGate


def simplify(model: S2FPN) -> S2FPN:
    """A copy for inference, equal to `model` in real arithmetic: in evaluation mode, without auxiliary heads, with
    batch norms folded into convolutions, and in channels_last."""
    simple = copy.deepcopy(model).eval().requires_grad_(False)
    simple.auxiliary = nn.ModuleList()
    fold_batch_norms(simple)
    # A 1x1 convolution without bias and a bilinear resize commute: the convolution runs on a quarter of the pixels
    for module in simple.children():
        if isinstance(module, APF):
            module.frb = SplitFRB(module.frb)
        elif isinstance(module, GFUv1):
            module.reduce_first = True
    return simple.to(memory_format=torch.channels_last)


def fold_batch_norms(module: nn.Module) -> None:
    """Fold each batch norm into the convolution before it, another child of the same module, in place. torch fuses one
    pair; its `torch.fx` pass over a whole module needs static control flow."""
    for parent in module.modules():
        if isinstance(parent, StripGate):  # its convolution has two norms
            continue
        for (conv_name, conv), (norm_name, norm) in itertools.pairwise(list(parent.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(parent, norm_name, nn.Identity())


class SplitFRB(nn.Module):
    """An FRB with folded batch norms: W [L, U] + b = W_low L + b + resize(W_high high), because U = resize(high)."""

    def __init__(self, frb: FRB) -> None:
        super().__init__()
        first, self.rest = frb
        low, high = (half.detach().contiguous() for half in first.conv.weight.chunk(2, dim=1))
        self.low, self.high = nn.Buffer(low), nn.Buffer(high)
        self.bias, self.act = nn.Buffer(first.conv.bias.detach()), first.act

    def forward(self, lateral: Tensor, high: Tensor, upsampled: Tensor) -> Tensor:
        coarse = resize_like(F.conv2d(high, self.high), lateral, align_corners=False)
        return self.rest(self.act(F.conv2d(lateral, self.low, self.bias) + coarse))
