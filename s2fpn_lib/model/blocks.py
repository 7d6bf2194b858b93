"""The building blocks of S²-FPN: ConvBNAct, the plain convolution, and the two resizes (docs/network.md, notation)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DROPOUT = 0.15
REVISIONS = ("v1", "v2")


def check_revision(revision: str) -> str:
    """Return `revision`; raise ValueError if it is neither "v1" nor "v2"."""
    if revision not in REVISIONS:
        raise ValueError(f"unknown revision {revision!r}: the published revisions are {', '.join(REVISIONS)}")
    return revision


class ConvBNAct(nn.Sequential):
    """Convolution without bias, batch norm, activation: ReLU in v1, PReLU with one slope per channel in v2.

    (B, in_channels, H, W) -> (B, out_channels, H/stride, W/stride). The padding of a 3x3 kernel equals its dilation.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int = 3, *, revision: str, dilation: int = 1, **options
    ) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel, padding=padding, dilation=dilation, bias=False, **options
        )
        self.bn = nn.BatchNorm2d(out_channels)
        self.act = nn.PReLU(out_channels) if check_revision(revision) == "v2" else nn.ReLU(inplace=True)


def plain_conv(in_channels: int, out_channels: int, *, bias: bool = False) -> nn.Conv2d:
    """A 1x1 convolution alone. The published checkpoints store an unused batch norm beside each of these."""
    return nn.Conv2d(in_channels, out_channels, 1, bias=bias)


def upsample_to(x: Tensor, reference: Tensor) -> Tensor:
    """Resize (B, C, h, w) bilinearly to the height and width of `reference`, corners not aligned (as in APF)."""
    if x.shape[-2:] == reference.shape[-2:]:
        return x
    return F.interpolate(x, size=reference.shape[-2:], mode="bilinear", align_corners=False)


def resize_aligned(x: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Resize (B, C, h, w) bilinearly to `size` = (H, W), corners aligned (as in GFU and the heads)."""
    if x.shape[-2:] == torch.Size(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)
