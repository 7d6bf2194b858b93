"""CRB, the channel-wise reweighting block of APF."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from s2fpn_lib.model.blocks import plain_conv


class CRB(nn.Module):
    """Weigh the channels of x by a squeeze-and-excitation gate: `x * sigmoid(W2 relu(W1 avgpool(x)))`.

    (B, C, H, W) -> (B, C, H, W). W1 brings C to C/4 and W2 back, both plain 1x1 convolutions.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = plain_conv(channels, channels // 4)
        self.expand = plain_conv(channels // 4, channels)

    def weights(self, x: Tensor) -> Tensor:
        """The channel weights in (0, 1): (B, C, H, W) -> (B, C, 1, 1)."""
        squeezed = x.mean(dim=(2, 3), keepdim=True)  # (B, C, 1, 1)
        return torch.sigmoid(self.expand(torch.relu(self.reduce(squeezed))))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weights(x)
