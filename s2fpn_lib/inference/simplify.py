"""The same function with less arithmetic: folded batch norms, no auxiliary heads, 1x1 convolutions before resizes."""

from __future__ import annotations

import copy
import itertools

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from s2fpn_lib.model import S2FPN
from s2fpn_lib.model.apf import APF, FRB
from s2fpn_lib.model.blocks import plain_conv, resize_like
from s2fpn_lib.model.gfu import GFUv1


def simplify(model: S2FPN) -> S2FPN:
    """A copy for inference, equal to `model` in real arithmetic: in evaluation mode, without auxiliary heads, with
    batch norms folded into convolutions, and in channels_last.

    A 1x1 convolution without bias and a bilinear resize, whose weights sum to 1, commute. The 1x1 convolution of GFU
    and the half of FRB's that reads the upsampled map therefore run before the resize, on a quarter of the pixels.
    """
    simple = copy.deepcopy(model).eval().requires_grad_(False)
    simple.auxiliary = nn.ModuleList()
    fold_batch_norms(simple)
    for module in simple.children():
        if isinstance(module, APF):
            module.frb = SplitFRB(module.frb)
        elif isinstance(module, GFUv1):
            module.reduce_first = True
    return simple.to(memory_format=torch.channels_last)


def fold_batch_norms(module: nn.Module) -> int:
    """Fold each batch norm that directly follows a convolution into it, in place; return how many were folded.

    conv: W' = W g / sqrt(v + eps), b' = beta - m g / sqrt(v + eps). Pairs are consecutive entries of a Sequential, and
    torchvision's conv<i>, bn<i>. The shared convolution of strip attention has two norms and keeps both. torch fuses
    one pair; its `torch.fx` pass over a whole module needs static control flow.
    """
    folded = 0
    for parent in module.modules():
        children = dict(parent.named_children())
        if isinstance(parent, nn.Sequential):
            pairs = list(itertools.pairwise(children))
        else:
            pairs = [(f"conv{i}", f"bn{i}") for i in (1, 2, 3)]
        for conv_name, norm_name in pairs:
            conv, norm = children.get(conv_name), children.get(norm_name)
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(parent, norm_name, nn.Identity())
                folded += 1
    return folded


class SplitFRB(nn.Module):
    """An FRB with folded batch norms that begins with two convolutions instead of a concatenation.

    W [L, U] + b = W_low L + b + resize(W_high high), because U = resize(high). Arguments and result are FRB's.
    """

    def __init__(self, frb: FRB) -> None:
        super().__init__()
        first, self.rest = frb
        self.low = _on_inputs(first.conv, slice(0, first.conv.in_channels // 2), bias=first.conv.bias)
        self.high = _on_inputs(first.conv, slice(first.conv.in_channels // 2, None), bias=None)
        self.act = first.act

    def forward(self, lateral: Tensor, high: Tensor, upsampled: Tensor) -> Tensor:
        return self.rest(self.act(self.low(lateral) + resize_like(self.high(high), lateral, align_corners=False)))


def _on_inputs(conv: nn.Conv2d, channels: slice, *, bias: Tensor | None) -> nn.Conv2d:
    """The part of the 1x1 convolution `conv` that reads the input channels `channels`."""
    weight = conv.weight[:, channels]
    part = plain_conv(weight.shape[1], conv.out_channels, bias=bias is not None).to(weight).requires_grad_(False)
    part.weight.copy_(weight)
    if bias is not None:
        part.bias.copy_(bias)
    return part
