"""APF, the attention pyramid fusion module, with its blocks FRB and CRB, and its plain substitute for ablations."""

import torch
from torch import Tensor, nn

from s2fpn_lib.model.blocks import ConvBNAct, plain_conv, resize_like
from s2fpn_lib.model.ssam import SSAM


class FRB(nn.Sequential):
    """The feature refinement block: R = 3x3(1x1(cat[L, U])), two ConvBNActs."""

    def __init__(self, high: int, out: int, *, revision: str) -> None:
        super().__init__(ConvBNAct(2 * high, out, 1, revision=revision), ConvBNAct(out, out, revision=revision))

    def forward(self, lateral: Tensor, high: Tensor, upsampled: Tensor) -> Tensor:
        """R (B, out, H, W) from L and U (B, C_high, H, W). U is the resized `high`, which only `SplitFRB` reads."""
        return super().forward(torch.cat([lateral, upsampled], dim=1))


class CRB(nn.Module):
    """The channel-wise reweighting block: `x * sigmoid(W2 relu(W1 avgpool(x)))`, (B, C, H, W) -> (B, C, H, W), with
    plain 1x1 convolutions W1 from C to C/4 channels and W2 back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = plain_conv(channels, channels // 4)
        self.expand = plain_conv(channels // 4, channels)

    def forward(self, x: Tensor) -> Tensor:
        squeezed = x.mean(dim=(2, 3), keepdim=True)  # (B, C, 1, 1)
        return x * torch.sigmoid(self.expand(torch.relu(self.reduce(squeezed))))


class APF(nn.Module):
    """Fuse a coarse map into a finer one with strip attention and channel reweighting (paper, figure of the APF).

    `high` (B, C_high, h, w) is the coarser map, `low` (B, C_low, H, W) the encoder's; the result is (B, out, H, W):

    L = lateral_low(low), U = bilinear(high), R = FRB(L, U),
    F = SSAM(R) * conv_high(U) + CRB(R) * conv_low(L), result = out(F).

    Switches: `ssam=False` multiplies conv_high(U) by R itself (identity gate); `crb=False` adds conv_low(L) unweighted.
    `attention` holds further arguments of `StripGate`.
    """

    def __init__(
        self, high: int, low: int, out: int, *, revision: str, ssam: bool = True, crb: bool = True, **attention
    ) -> None:
        super().__init__()
        self.lateral_low = ConvBNAct(low, high, 1, revision=revision)
        self.frb = FRB(high, out, revision=revision)
        self.conv_high = ConvBNAct(high, out, revision=revision)
        self.conv_low = ConvBNAct(high, out, revision=revision)
        self.ssam = SSAM[revision](out, **attention) if ssam else nn.Identity()
        self.crb = CRB(out) if crb else None
        self.out = ConvBNAct(out, out, revision=revision)

    def forward(self, high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
        """The level's result and F, which the auxiliary head reads; both (B, out, H, W)."""
        lateral = self.lateral_low(low)
        upsampled = resize_like(high, lateral, align_corners=False)
        refined = self.frb(lateral, high, upsampled)
        low_branch = self.conv_low(lateral)
        if self.crb is not None:
            low_branch = self.crb(refined) * low_branch
        fused = self.ssam(refined) * self.conv_high(upsampled) + low_branch
        return self.out(fused), fused


class FPNLevel(nn.Module):
    """The substitute for APF in ablations: the sum of lateral and upsampled map of a feature pyramid, then a 3x3. Same
    arguments and shapes as APF; the auxiliary head reads the result itself."""

    def __init__(self, high: int, low: int, out: int, *, revision: str) -> None:
        super().__init__()
        self.lateral_low = ConvBNAct(low, high, 1, revision=revision)
        self.out = ConvBNAct(high, out, revision=revision)

    def forward(self, high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
        lateral = self.lateral_low(low)
        result = self.out(lateral + resize_like(high, lateral, align_corners=False))
        return result, result
