"""The encoders: torchvision's ResNets and EfficientNet-Lite, both with four maps at strides 4, 8, 16, and 32."""

import socket
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from s2fpn_lib.model.efficientnet_lite import EfficientNetLite
from s2fpn_lib.model.published import read_tensors

DOWNLOAD_TIMEOUT_S = 10


@dataclass(frozen=True)
class EncoderSpec:
    """The facts that the pyramid needs about an encoder, and the normalization that the encoder was trained with."""

    architecture: str
    channels: tuple[int, int, int, int]  # of its four maps
    widths: tuple[int, int, int, int] = (64, 128, 256, 512)  # of the maps that the pyramid reads
    pyramid: tuple[int, int, int, int] = (256, 128, 64, 32)  # of apf1 to apf4
    projection_kernel: int = 3  # of the projection from channels to widths, where they differ
    double_resolution: bool = False
    normalization: str = "imagenet"

    @property
    def depthwise(self) -> bool:
        """Whether most of its convolutions are depthwise ones, for which cuDNN compiles kernels layer by layer."""
        return self.architecture.startswith("efficientnet")

    def build(self, *, double_resolution: bool) -> "ResNetEncoder | EfficientNetLite":
        """The encoder, at twice the resolution if this specification or the caller asks for it."""
        options = {"double_resolution": double_resolution or self.double_resolution}
        if self.depthwise:
            return EfficientNetLite(int(self.architecture[-1]), **options)
        return ResNetEncoder(self.architecture, **options)


_BASIC, _BOTTLENECK = (64, 128, 256, 512), (256, 512, 1024, 2048)
_LITE = {"widths": (32, 48, 96, 160), "pyramid": (96, 48, 32, 32), "projection_kernel": 1, "normalization": "lite"}

ENCODERS = {
    "s2fpn18": EncoderSpec("resnet18", _BASIC),
    "s2fpn34": EncoderSpec("resnet34", _BASIC),
    "s2fpn34m": EncoderSpec("resnet34", _BASIC, double_resolution=True),
    "s2fpn50": EncoderSpec("resnet50", _BOTTLENECK),
    "s2fpn101": EncoderSpec("resnet101", _BOTTLENECK),
    "s2fpn152": EncoderSpec("resnet152", _BOTTLENECK),
    "s2fpn_lite": EncoderSpec("efficientnet_lite0", (24, 40, 112, 320), **_LITE),
    "s2fpn_lite1": EncoderSpec("efficientnet_lite1", (24, 40, 112, 320), **_LITE),
    "s2fpn_lite2": EncoderSpec("efficientnet_lite2", (24, 48, 120, 352), **_LITE),
}


class ResNetEncoder(nn.ModuleDict):
    """torchvision's ResNet without its classifier: (B, 3, H, W) -> [x2, x3, x4, x5] at strides 4, 8, 16, and 32;
    with `double_resolution` at 2, 4, 8, and 16, because the max-pool of the stem is bypassed (the M of S²-FPN34M)."""

    def __init__(self, architecture: str, *, double_resolution: bool) -> None:
        import torchvision  # here, because its import takes over a second

        # Residual branches start at zero (Goyal et al., arXiv 1706.02677). Otherwise the variance of an untrained
        # network in evaluation mode doubles at each block, and the products in APF square it up to infinity.
        net = torchvision.models.get_model(architecture, weights=None, zero_init_residual=True)
        if double_resolution:
            net.maxpool = nn.Identity()
        super().__init__({name: part for name, part in net.named_children() if name not in ("avgpool", "fc")})
        self.architecture = architecture

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for name, part in self.items():
            x = part(x)
            if name.startswith("layer"):
                maps.append(x)
        return maps

    def load_imagenet(self, path: str | Path | None = None) -> None:
        """Load a state dict from `path`, by default torchvision's ImageNet weights, downloaded and cached by torch.hub.
        Raises the errors of `read_tensors`, and RuntimeError for other weights or a failed download."""
        missing, _ = self.load_state_dict(self._download() if path is None else read_tensors(path), strict=False)
        if missing:
            first = f"{len(missing)} entries are missing, the first is {missing[0]}"
            raise RuntimeError(f"these are not weights of {self.architecture}: {first}")

    def _download(self) -> dict[str, Tensor]:
        import torchvision

        weights = torchvision.models.get_model_weights(self.architecture).IMAGENET1K_V1
        # torch.hub has no timeout: behind a firewall that drops packets, an unattended run would wait forever
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)
        try:
            return weights.get_state_dict(progress=True, check_hash=True)
        except (OSError, RuntimeError) as error:
            cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
            raise RuntimeError(
                f"the ImageNet weights of {self.architecture} could not be loaded ({error}). Without a network, "
                f"fetch {weights.url} elsewhere and put it at {cached}, or give its path as encoder_weights; "
                "or train from scratch with encoder_weights=None (10_train: encoder_weights none)"
            ) from error
        finally:
            socket.setdefaulttimeout(before)
