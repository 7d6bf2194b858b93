"""The same function with less arithmetic: batch norms folded, auxiliary heads gone, 1x1 convolutions before resizes."""

from __future__ import annotations

import copy
import itertools

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from s2fpn_lib.model import S2FPN
from s2fpn_lib.model.apf import APF
from s2fpn_lib.model.blocks import upsample_to
from s2fpn_lib.model.gfu import GFUv1


def simplify(model: S2FPN) -> S2FPN:
    """A copy for inference, equal to `model` in real arithmetic: in evaluation mode, without auxiliary heads, with
    batch norms folded into convolutions, and in channels_last.

    A 1x1 convolution without bias and a bilinear resize, whose weights sum to 1, commute. GFU's and the upper half of
    FRB's first therefore run before the resize, on a quarter of the pixels.
    """
    simple = copy.deepcopy(model).eval().requires_grad_(False)
    simple.auxiliary = nn.ModuleList()
    fold_batch_norms(simple)
    for name, module in list(simple.named_children()):
        if isinstance(module, APF):
            setattr(simple, name, SplitAPF(module))
        elif isinstance(module, GFUv1):
            module.reduce_first = True
    return simple.to(memory_format=torch.channels_last)


def fold_batch_norms(module: nn.Module) -> int:
    """Folds each batch norm that directly follows a convolution into it, in place; how many were folded.

    conv: W' = W g / sqrt(v + eps), b' = beta - m g / sqrt(v + eps). Neighbours are consecutive entries of a
    Sequential, and torchvision's conv<i>, bn<i>. Strip attention's shared convolution has two norms and keeps both.
    """
    folded = 0
    for parent in module.modules():
        children = dict(parent.named_children())
        if isinstance(parent, nn.Sequential):
            names = list(children)
            pairs = list(itertools.pairwise(names))
        else:
            pairs = [(f"conv{i}", f"bn{i}") for i in (1, 2, 3)]
        for conv_name, norm_name in pairs:
            conv, norm = children.get(conv_name), children.get(norm_name)
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(parent, norm_name, nn.Identity())
                folded += 1
    return folded


class SplitAPF(nn.Module):
    """An APF with folded batch norms whose FRB begins with two convolutions instead of a concatenation.

    W [L, U] + b = W_low L + b + resize(W_high high), as U = resize(high). Arguments and results are APF's.
    """

    def __init__(self, apf: APF) -> None:
        super().__init__()
        first, self.frb_rest = apf.frb[0], apf.frb[1]
        channels = first.conv.in_channels // 2
        self.frb_low = _slice_inputs(first.conv, 0, channels, bias=first.conv.bias)
        self.frb_high = _slice_inputs(first.conv, channels, 2 * channels, bias=None)
        self.frb_act = first.act
        self.lateral_low, self.conv_high, self.conv_low = apf.lateral_low, apf.conv_high, apf.conv_low
        self.ssam, self.crb, self.out = apf.ssam, apf.crb, apf.out

    def forward(self, high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
        lateral = self.lateral_low(low)
        refined = self.frb_low(lateral) + upsample_to(self.frb_high(high), lateral)
        refined = self.frb_rest(self.frb_act(refined))
        low_branch = self.conv_low(lateral)
        if self.crb is not None:
            low_branch = self.crb(refined) * low_branch
        fused = self.ssam(refined) * self.conv_high(upsample_to(high, lateral)) + low_branch
        return self.out(fused), fused


def _slice_inputs(conv: nn.Conv2d, start: int, stop: int, *, bias: Tensor | None) -> nn.Conv2d:
    """The 1x1 convolution `conv` on its input channels start..stop alone."""
    part = nn.Conv2d(stop - start, conv.out_channels, 1, bias=bias is not None).to(conv.weight).requires_grad_(False)
    part.weight.copy_(conv.weight[:, start:stop])
    if bias is not None:
        part.bias.copy_(bias)
    return part
