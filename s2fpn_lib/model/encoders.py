"""The encoders: torchvision's ResNets and EfficientNet-Lite0, both as four maps at strides 4, 8, 16 and 32."""

from __future__ import annotations

import socket
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

import torch
import torchvision
from torch import Tensor, nn

from s2fpn_lib.model.efficientnet_lite import EfficientNetLite0
from s2fpn_lib.model.state_dicts import read_tensors

DOWNLOAD_TIMEOUT_S = 10


@dataclass(frozen=True)
class EncoderSpec:
    """What the pyramid must know of an encoder, and what the encoder was trained on.

    `channels` are those of its four maps; `widths` those that the pyramid reads, after a projection with
    `projection_kernel` where the two differ. `pyramid` are the widths of apf1 to apf4.
    """

    architecture: str
    channels: tuple[int, int, int, int]
    widths: tuple[int, int, int, int] = (64, 128, 256, 512)
    pyramid: tuple[int, int, int, int] = (256, 128, 64, 32)
    projection_kernel: int = 3
    double_resolution: bool = False
    normalization: str = "imagenet"

    def build(self, *, double_resolution: bool = False) -> ResNetEncoder | EfficientNetLite0:
        """The encoder, at twice the resolution where this specification or the caller says so."""
        double_resolution = double_resolution or self.double_resolution
        if self.architecture == "efficientnet_lite0":
            return EfficientNetLite0(double_resolution=double_resolution)
        return ResNetEncoder(self.architecture, double_resolution=double_resolution)


_BASIC = (64, 128, 256, 512)
_BOTTLENECK = (256, 512, 1024, 2048)

ENCODERS = {
    "s2fpn18": EncoderSpec("resnet18", _BASIC),
    "s2fpn34": EncoderSpec("resnet34", _BASIC),
    "s2fpn34m": EncoderSpec("resnet34", _BASIC, double_resolution=True),
    "s2fpn50": EncoderSpec("resnet50", _BOTTLENECK),
    "s2fpn101": EncoderSpec("resnet101", _BOTTLENECK),
    "s2fpn152": EncoderSpec("resnet152", _BOTTLENECK),
    "s2fpn_lite": EncoderSpec(
        "efficientnet_lite0",
        EfficientNetLite0.channels,
        widths=(32, 48, 96, 160),
        pyramid=(96, 48, 32, 32),
        projection_kernel=1,
        normalization="lite",
    ),
}


class ResNetEncoder(nn.Module):
    """torchvision's ResNet without its classifier: (B, 3, H, W) -> [x2, x3, x4, x5].

    Strides 4, 8, 16, 32. With `double_resolution` the stem's max-pool is bypassed (the M of S²-FPN34M) and every map
    has twice the height and width.
    """

    def __init__(self, architecture: str, *, double_resolution: bool = False) -> None:
        super().__init__()
        # Residual branches start at zero (Goyal et al., arXiv 1706.02677): else an untrained network in evaluation
        # mode doubles its variance at every block, which the products in APF square up to infinity.
        net = torchvision.models.get_model(architecture, weights=None, zero_init_residual=True)
        self.architecture = architecture
        self.conv1, self.bn1, self.relu = net.conv1, net.bn1, net.relu
        self.maxpool = nn.Identity() if double_resolution else net.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        maps = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            maps.append(x)
        return maps

    def load_imagenet(self, path: str | Path | None = None) -> None:
        """Load torchvision's ImageNet weights, downloaded and cached by torch.hub, or a state dict from `path`.

        Raises RuntimeError at once when the download fails, with the file's address and where to put it, and the errors
        of `read_tensors` for a file from `path`.
        """
        weights = torchvision.models.get_model_weights(self.architecture).IMAGENET1K_V1
        if path is not None:
            state = read_tensors(path)
        else:
            cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
            try:
                with _download_timeout(DOWNLOAD_TIMEOUT_S):
                    state = weights.get_state_dict(progress=True, check_hash=True)
            except (URLError, OSError, RuntimeError) as error:
                raise RuntimeError(
                    f"the ImageNet weights of {self.architecture} could not be loaded ({error}). Without a network, "
                    f"fetch {weights.url} elsewhere and put it at {cached}, or give its path as encoder_weights; "
                    "or train from scratch with encoder_weights=None (10_train: encoder_weights none)"
                ) from error
        missing, _ = self.load_state_dict(state, strict=False)
        if missing:
            raise RuntimeError(
                f"these are not weights of {self.architecture}: {len(missing)} entries lack, first {missing[0]}"
            )


@contextmanager
def _download_timeout(seconds: float):
    """torch.hub opens its connection without a timeout; a firewall that drops packets would hang a headless run."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
