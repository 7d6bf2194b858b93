"""APF, the attention pyramid fusion module: one level of the pyramid, and its plain substitute for ablations."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from s2fpn_lib.model.blocks import DROPOUT, ConvBNAct, plain_conv, upsample_to
from s2fpn_lib.model.crb import CRB
from s2fpn_lib.model.ssam import SSAM


class AuxiliaryHead(nn.Sequential):
    """3x3 ConvBNAct, dropout, plain 1x1 to the classes: (B, C, H, W) -> (B, K, H, W). Run in training only."""

    def __init__(self, channels: int, num_classes: int, *, revision: str, dropout: float = DROPOUT) -> None:
        super().__init__(
            ConvBNAct(channels, channels, revision=revision),
            nn.Dropout(dropout),
            plain_conv(channels, num_classes),
        )


class APF(nn.Module):
    """Fuse a coarse map into a finer one with strip attention and channel reweighting (paper, figure of the APF).

    `high` (B, C_high, h, w) is the coarser map, `low` (B, C_low, H, W) the encoder's; the result is (B, out, H, W):

    L = lateral_low(low), U = bilinear(high), R = FRB(cat[L, U]),
    F = SSAM(R) * conv_high(U) + CRB(R) * conv_low(L), result = out(F).

    Switches: `ssam=False` multiplies conv_high(U) by R itself (identity gate); `crb=False` adds conv_low(L) as it is.
    """

    def __init__(
        self,
        high: int,
        low: int,
        out: int,
        *,
        revision: str,
        ssam: bool = True,
        crb: bool = True,
        strip_axis: str = "height",
        dropout: float = DROPOUT,
        gamma_init: float = 0.0,
    ) -> None:
        super().__init__()
        self.lateral_low = ConvBNAct(low, high, 1, revision=revision)
        self.frb = nn.Sequential(ConvBNAct(2 * high, out, 1, revision=revision), ConvBNAct(out, out, revision=revision))
        self.conv_high = ConvBNAct(high, out, revision=revision)
        self.conv_low = ConvBNAct(high, out, revision=revision)
        self.ssam = (
            SSAM(out, revision=revision, strip_axis=strip_axis, dropout=dropout, gamma_init=gamma_init)
            if ssam
            else nn.Identity()
        )
        self.crb = CRB(out) if crb else None
        self.out = ConvBNAct(out, out, revision=revision)

    def fuse(self, high: Tensor, low: Tensor) -> Tensor:
        """F, the fused map that the auxiliary head reads: (B, out, H, W)."""
        lateral = self.lateral_low(low)
        up = upsample_to(high, lateral)
        refined = self.frb(torch.cat([lateral, up], dim=1))
        low_branch = self.conv_low(lateral)
        if self.crb is not None:
            low_branch = self.crb(refined) * low_branch
        return self.ssam(refined) * self.conv_high(up) + low_branch

    def forward(self, high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
        """The level's result and F, both (B, out, H, W)."""
        fused = self.fuse(high, low)
        return self.out(fused), fused


class FPNLevel(nn.Module):
    """The substitute for APF in ablations: a feature pyramid's sum of lateral and upsampled, and its 3x3.

    Same arguments and shapes as APF; the auxiliary head reads the result itself.
    """

    def __init__(self, high: int, low: int, out: int, *, revision: str) -> None:
        super().__init__()
        self.lateral_low = ConvBNAct(low, high, 1, revision=revision)
        self.out = ConvBNAct(high, out, revision=revision)

    def forward(self, high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
        lateral = self.lateral_low(low)
        result = self.out(lateral + upsample_to(high, lateral))
        return result, result
