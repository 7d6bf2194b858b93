"""SSAM, the scale-aware strip attention module: one class per revision, and the gate that both share.

A strip is a feature map after pooling over one axis. The published network pools over the height, so that a strip has
one entry per image column; `strip_axis="width"` pools over the width instead (one entry per row).
"""

import torch
from torch import Tensor, nn

from s2fpn_lib.model.blocks import DROPOUT, ConvBNAct, plain_conv

STRIP_AXES = {"height": 2, "width": 3}


class StripGate(nn.Module):
    """The part that both revisions share: the weight W of both strips, and `relu(g dropout(fuse(S)) + (1 - g) x)` with
    the learned scalar g = `gamma`, initially `gamma_init`: 0 in the published network, which starts with relu(x)."""

    def __init__(
        self, channels: int, *, strip_axis: str = "height", dropout: float = DROPOUT, gamma_init: float = 0.0
    ) -> None:
        super().__init__()
        if strip_axis not in STRIP_AXES:
            raise ValueError(f"unknown strip_axis {strip_axis!r}: choose one of {', '.join(STRIP_AXES)}")
        self.pooled_dim = STRIP_AXES[strip_axis]
        self.shared = plain_conv(channels, channels)
        self.bn_max = nn.BatchNorm2d(channels)
        self.fuse = plain_conv(channels, channels)
        self.dropout = nn.Dropout(dropout)
        self.gamma = nn.Parameter(torch.full((1,), float(gamma_init)))

    def max_strip(self, x: Tensor) -> Tensor:
        """m = BN1(W maxpool(x)): (B, C, H, W) -> (B, C, 1, W), or (B, C, H, 1) for strip_axis="width"."""
        # Channels are moved to the end for the reduction, which is thirty times faster in channels_last memory
        highest = x.movedim(1, 3).amax(self.pooled_dim - 1, keepdim=True).movedim(3, 1)
        return self.bn_max(self.shared(highest))

    def blend(self, strips: Tensor, x: Tensor) -> Tensor:
        """relu(g dropout(fuse(S)) + (1 - g) x), with S (B, C, 1 or H, W) broadcast to x (B, C, H, W)."""
        attended = self.dropout(self.fuse(strips).expand_as(x))
        return torch.relu(self.gamma * attended + (1 - self.gamma) * x)


class SSAMv1(StripGate):
    """The paper's strip attention: two gates per column weigh the average and the maximum strip.

    m = BN1(W maxpool(x)), a = BN2(W avgpool(x)), A = softmax over channels of m * a,
    S = A[:, 0:1] * a + A[:, 1:2] * m, then the gate. (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, channels: int, **options) -> None:
        super().__init__(channels, **options)
        self.bn_avg = nn.BatchNorm2d(channels)

    @staticmethod
    def gates(maximum: Tensor, average: Tensor) -> Tensor:
        """A = softmax over channels of m * a, in float32: (B, C, 1, W) twice -> (B, C, 1, W)."""
        return torch.softmax((maximum * average).float(), dim=1)

    def forward(self, x: Tensor) -> Tensor:
        maximum = self.max_strip(x)  # (B, C, 1, W)
        average = self.bn_avg(self.shared(x.mean(self.pooled_dim, keepdim=True)))  # (B, C, 1, W)
        gates = self.gates(maximum, average).to(x.dtype)
        return self.blend(gates[:, 0:1] * average + gates[:, 1:2] * maximum, x)


class ColumnAttention(StripGate):
    """The attention of v2: each pixel attends to the strip's columns, softmax over columns of m^T q without 1/sqrt(C).

    q = BN2(W x) are the queries (B, C, HW), one per pixel; m = BN1(W maxpool(x)) the keys (B, C, L), one per column;
    v = conv_v(avgpool(x)) the values; T = augment(v P) the attended map; S = T[:, 0:1] * q + T[:, 1:2] * m (no
    sigmoid on the two gates), then the gate and one more plain 1x1. L is W, or H for strip_axis="width".
    """

    def __init__(self, channels: int, **options) -> None:
        super().__init__(channels, **options)
        self.bn_query = nn.BatchNorm2d(channels)
        self.value = plain_conv(channels, channels, bias=True)
        self.augment = plain_conv(channels, channels, bias=True)
        self.fuse_out = plain_conv(channels, channels)

    @staticmethod
    def distribution(query: Tensor, keys: Tensor) -> Tensor:
        """P, the distribution of each pixel over strip entries: (B, C, H, W), (B, C, 1, W) -> (B, HW, L), float32."""
        scores = torch.einsum("bcp,bcl->bpl", query.flatten(2).float(), keys.flatten(2).float())
        return torch.softmax(scores, dim=2)

    def attended(self, x: Tensor, query: Tensor, keys: Tensor) -> Tensor:
        """T = augment(v P): the values of the strip, averaged by the distribution of each pixel, (B, C, H, W)."""
        value = self.value(x.mean(self.pooled_dim, keepdim=True))  # (B, C, 1, W)
        # (B, 1, HW or L, C): the ONNX export needs the axis of heads
        operands = [part.flatten(2).transpose(1, 2)[:, None] for part in (query, keys, value)]
        mixed = nn.functional.scaled_dot_product_attention(*operands, scale=1.0)
        return self.augment(mixed[:, 0].transpose(1, 2).reshape(x.shape))  # (B, HW, C) -> (B, C, H, W)

    def forward(self, x: Tensor) -> Tensor:
        query, keys = self.bn_query(self.shared(x)), self.max_strip(x)
        attended = self.attended(x, query, keys)
        strips = attended[:, 0:1] * query + attended[:, 1:2] * keys
        return self.fuse_out(self.blend(strips, x))


class DilatedGate(nn.Module):
    """The "mlp" of v2: sigmoid(fuse(cat[3x3 dilation 2, 3x3 dilation 4])), C/2 channels per branch."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dilated2 = ConvBNAct(channels, channels // 2, dilation=2, revision="v2")
        self.dilated4 = ConvBNAct(channels, channels // 2, dilation=4, revision="v2")
        self.fuse = plain_conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.fuse(torch.cat([self.dilated2(x), self.dilated4(x)], dim=1)))


class SSAMv2(nn.Module):
    """The strip attention of v2: y = x + attention(x), then y + mlp(y). (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, **options) -> None:
        super().__init__()
        self.attention = ColumnAttention(channels, **options)
        self.mlp = DilatedGate(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.attention(x)
        return y + self.mlp(y)


SSAM = {"v1": SSAMv1, "v2": SSAMv2}
