"""The building blocks of S²-FPN: ConvBNAct, the plain convolution, and the resize (docs/network.md, notation)."""

import torch.nn.functional as F
from torch import Tensor, nn

DROPOUT = 0.15
REVISIONS = ("v1", "v2")


class ConvBNAct(nn.Sequential):
    """Convolution without bias, batch norm, activation: ReLU in v1, PReLU with one slope per channel in v2.
    (B, inputs, H, W) -> (B, out, H/stride, W/stride); the padding of a 3x3 kernel equals its dilation."""

    def __init__(self, inputs: int, out: int, kernel: int = 3, *, revision: str, dilation: int = 1, **options) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        self.conv = nn.Conv2d(inputs, out, kernel, padding=padding, dilation=dilation, bias=False, **options)
        self.bn = nn.BatchNorm2d(out)
        self.act = nn.PReLU(out) if revision == "v2" else nn.ReLU(inplace=True)


def plain_conv(in_channels: int, out_channels: int, *, bias: bool = False) -> nn.Conv2d:
    """A 1x1 convolution alone. The published checkpoints store an unused batch norm beside each of these."""
    return nn.Conv2d(in_channels, out_channels, 1, bias=bias)


def resize_like(x: Tensor, reference: Tensor, *, align_corners: bool = True) -> Tensor:
    """Resize (B, C, h, w) bilinearly to the height and width of `reference`: corners are aligned except in APF."""
    size = reference.shape[-2:]
    return x if x.shape[-2:] == size else F.interpolate(x, size, mode="bilinear", align_corners=align_corners)
