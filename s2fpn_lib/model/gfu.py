"""GFU, global feature upsampling: adds the coarser result to the next finer level. One class per revision."""

import torch
from torch import Tensor, nn

from s2fpn_lib.model.blocks import ConvBNAct, plain_conv, resize_like


class GFUv1(nn.Module):
    """conv3(f' + conv1(p)), f' = relu(W resize(f)); p (B, C, H, W), f (B, C_f, h, w) -> (B, C, H, W). `pool=True` is
    the block of the paper's figure: f is averaged over height and width before W."""

    revision = "v1"
    conv3_kernel = 1

    def __init__(self, coarse: int, channels: int, *, pool: bool = False) -> None:
        super().__init__()
        self.pool = pool
        self.conv1 = ConvBNAct(channels, channels, 1, revision=self.revision)
        self.conv2 = plain_conv(coarse, channels)
        self.conv3 = ConvBNAct(channels, channels, self.conv3_kernel, revision=self.revision)
        self.reduce_first = False  # W before the resize: equal up to rounding, at a quarter of the cost

    def context(self, p: Tensor, f: Tensor) -> Tensor:
        """f' = relu(W resize(f)), corners aligned: (B, C, H, W), or (B, C, 1, 1) when pooled."""
        if self.reduce_first and not self.pool:
            return torch.relu(resize_like(self.conv2(f), p))
        return torch.relu(self.conv2(f.mean(dim=(2, 3), keepdim=True) if self.pool else resize_like(f, p)))

    def forward(self, p: Tensor, f: Tensor) -> Tensor:
        return self.conv3(self.context(p, f) + self.conv1(p))


class GFUv2(GFUv1):
    """The gated block of v2: h = conv3(f' + p'), split into h1 and h2, then fuse(cat[s1 * f', s2 * p']) with
    s1 = ConvBNAct(h1), s2 = sigmoid(BN(W h2)). Shapes as in GFUv1."""

    revision = "v2"
    conv3_kernel = 3

    def __init__(self, coarse: int, channels: int, *, pool: bool = False) -> None:
        super().__init__(coarse, channels, pool=pool)
        self.s1 = ConvBNAct(channels // 2, channels, revision="v2")
        self.s2 = nn.Sequential(plain_conv(channels // 2, channels), nn.BatchNorm2d(channels))
        self.fuse = ConvBNAct(2 * channels, channels, revision="v2")

    def forward(self, p: Tensor, f: Tensor) -> Tensor:
        coarse, fine = self.context(p, f), self.conv1(p)
        h1, h2 = self.conv3(coarse + fine).chunk(2, dim=1)  # (B, C/2, H, W) each
        gate = torch.sigmoid(self.s2(h2))
        return self.fuse(torch.cat([self.s1(h1) * coarse, gate * fine], dim=1))


class UpsampleAdd(nn.Module):
    """The substitute for GFU in ablations: p + resize(W f), W a plain 1x1 that matches the channels."""

    def __init__(self, coarse: int, channels: int) -> None:
        super().__init__()
        self.conv2 = plain_conv(coarse, channels)

    def forward(self, p: Tensor, f: Tensor) -> Tensor:
        return p + resize_like(self.conv2(f), p)


GFU = {"v1": GFUv1, "v2": GFUv2}
