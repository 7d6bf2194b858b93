"""The building blocks that every part of S²-FPN shares: ConvBNAct, the plain convolution and the two resizes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DROPOUT = 0.15
REVISIONS = ("v1", "v2")


def check_revision(revision: str) -> str:
    """Return `revision`, or raise ValueError when it is neither "v1" nor "v2"."""
    if revision not in REVISIONS:
        raise ValueError(f"unknown revision {revision!r}: the published revisions are {', '.join(REVISIONS)}")
    return revision


class ConvBNAct(nn.Sequential):
    """Convolution without bias, batch norm, activation: ReLU in v1, PReLU with one slope a channel in v2.

    (B, in_channels, H, W) -> (B, out_channels, H/stride, W/stride); the padding equals the dilation for 3x3 kernels,
    so that only the stride changes the size.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 3,
        *,
        revision: str,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel,
            stride,
            padding=dilation * (kernel // 2),
            dilation=dilation,
            groups=groups,
            bias=False,
        )
        self.bn = nn.BatchNorm2d(out_channels)
        self.act = nn.PReLU(out_channels) if check_revision(revision) == "v2" else nn.ReLU(inplace=True)


def plain_conv(in_channels: int, out_channels: int, *, bias: bool = False) -> nn.Conv2d:
    """A bare 1x1 convolution. The published checkpoints store a dead batch norm beside each of these."""
    return nn.Conv2d(in_channels, out_channels, 1, bias=bias)


def upsample_to(x: Tensor, reference: Tensor) -> Tensor:
    """Resize (B, C, h, w) bilinearly to the height and width of `reference`, corners not aligned (as APF does)."""
    if x.shape[-2:] == reference.shape[-2:]:
        return x
    return F.interpolate(x, size=reference.shape[-2:], mode="bilinear", align_corners=False)


def resize_aligned(x: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Resize (B, C, h, w) bilinearly to `size` = (H, W), corners aligned (as GFU and the heads do)."""
    if x.shape[-2:] == torch.Size(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)
