"""S²-FPN: encoder, pyramid of APFs, top-down path of GFUs, and head (docs/network.md; paper, overview figure)."""

import math
from collections.abc import Collection
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from s2fpn_lib.model.apf import APF, FPNLevel
from s2fpn_lib.model.blocks import DROPOUT, REVISIONS, ConvBNAct, plain_conv, resize_like
from s2fpn_lib.model.encoders import ENCODERS, EncoderSpec
from s2fpn_lib.model.gfu import GFU, UpsampleAdd
from s2fpn_lib.model.hub import HubMixin
from s2fpn_lib.validate import as_declared, did_you_mean

MIN_SIZE = 32

# Mean and standard deviation of R, G, B on the 0..255 scale. The published inputs subtract a mean and do not divide.
NORMALIZATIONS = {
    "imagenet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    "lite": ((127.0, 127.0, 127.0), (128.0, 128.0, 128.0)),
    "camvid-mean": ((99.63, 103.33, 105.66), (1.0, 1.0, 1.0)),
    "cityscapes-mean": ((73.45, 83.21, 72.78), (1.0, 1.0, 1.0)),
}


@dataclass(frozen=True)
class Switches:
    """The parts that an ablation turns off or varies; the defaults are the published network."""

    ssam: bool = True  # False: identity gate
    crb: bool = True  # False: plain convolution branch
    apf: bool = True  # False: FPN sum of lateral and upsampled map
    gfu: bool = True  # False: upsample and add
    deep_supervision: bool = True  # False: no auxiliary heads
    strip_axis: str = "height"  # that SSAM pools over, as published, or "width"
    gfu_pool: bool = False  # global pooling in GFU, as in the paper's figure
    gamma_init: float = 0.0  # initial value of SSAM's learned blend
    dropout: float = DROPOUT  # the rate everywhere
    double_resolution: bool = False  # twice the height and width in each level: S²-FPN34 becomes S²-FPN34M

    def __post_init__(self) -> None:
        for field in fields(self):
            try:
                value = as_declared(getattr(self, field.name), type(field.default))
            except TypeError as error:
                raise TypeError(f"switch {field.name} is {error}") from error
            object.__setattr__(self, field.name, value)


@dataclass
class Pyramid:
    """All results of one forward pass, each at its own resolution, from coarse to fine: apf1 to apf4, their auxiliary
    logits (empty unless requested), gfu4 to gfu1, and the head's logits (B, K, H/4, W/4)."""

    apf: list[Tensor]
    auxiliary: list[Tensor]
    gfu: list[Tensor]
    logits: Tensor


class S2FPN(HubMixin, nn.Module):
    """The network of `build_model(**config)`. `forward(x)` maps normalized float images (B, 3, H, W), H and W at least
    32, to logits (B, K, H, W)."""

    def __init__(self, spec: EncoderSpec, switches: Switches, config: dict[str, Any]) -> None:
        super().__init__()
        revision, num_classes, rate = config["revision"], config["num_classes"], switches.dropout
        self.config, self.num_classes = config, num_classes
        self.encoder = spec.build(double_resolution=switches.double_resolution)
        project = partial(ConvBNAct, kernel=spec.projection_kernel, revision=revision)
        self.project = nn.ModuleList(
            nn.Identity() if channels == width else project(channels, width)
            for channels, width in zip(spec.channels, spec.widths, strict=True)
        )
        p1, p2, p3, p4 = spec.pyramid
        c2, c3, c4, c5 = spec.widths
        self.cfgb = nn.Sequential(ConvBNAct(c5, c5, stride=2, groups=c5, revision=revision), nn.Dropout(rate))
        self.fab = nn.Sequential(ConvBNAct(c5, p1, groups=math.gcd(c5, p1), revision=revision), nn.Dropout(rate))

        attention = {"strip_axis": switches.strip_axis, "dropout": rate, "gamma_init": switches.gamma_init}
        apf = partial(APF, ssam=switches.ssam, crb=switches.crb, **attention) if switches.apf else FPNLevel
        self.apf1 = apf(c5, c5, p1, revision=revision)
        self.apf2 = apf(p1, c4, p2, revision=revision)
        self.apf3 = apf(p2, c3, p3, revision=revision)
        self.apf4 = apf(p3, c2, p4, revision=revision)
        self.auxiliary = nn.ModuleList(
            nn.Sequential(ConvBNAct(width, width, revision=revision), nn.Dropout(rate), plain_conv(width, num_classes))
            for width in (spec.pyramid if switches.deep_supervision else ())
        )
        gfu = partial(GFU[revision], pool=switches.gfu_pool) if switches.gfu else UpsampleAdd
        self.gfu4, self.gfu3, self.gfu2, self.gfu1 = gfu(p1, p1), gfu(p1, p2), gfu(p2, p3), gfu(p3, p4)
        self.head = plain_conv(p4, num_classes)

        for name, values in zip(("mean", "std"), NORMALIZATIONS[config["normalization"]], strict=True):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d) and not name.startswith("encoder."):  # the encoder keeps its own
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def preprocess(self, images: Tensor) -> Tensor:
        """uint8 RGB (B, 3, H, W) -> the network's float32 input, normalized, on the network's device."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"expected uint8 RGB images (B, 3, H, W), got {images.dtype} {tuple(images.shape)}")
        return (images.to(self.mean.device, non_blocking=True).float() - self.mean) / self.std

    def pyramid(self, x: Tensor, *, aux: bool = False) -> Pyramid:
        """Run the network without the final resize. The auxiliary heads run only with `aux`."""
        if x.ndim != 4 or x.shape[1] != 3:
            raise ValueError(f"S2FPN needs images (B, 3, H, W), got shape {tuple(x.shape)}")
        if not x.is_floating_point():
            raise TypeError(f"S2FPN needs normalized float images, got {x.dtype}: use model.preprocess first")
        if min(x.shape[-2:]) < MIN_SIZE:
            raise ValueError(f"S2FPN needs at least {MIN_SIZE}x{MIN_SIZE} pixels, got {x.shape[-2]}x{x.shape[-1]}")
        x2, x3, x4, x5 = (project(level) for project, level in zip(self.project, self.encoder(x), strict=True))
        apf, auxiliary, gfu = [], [], []
        coarse = self.cfgb(x5)
        for index, (level, lateral) in enumerate(zip(self.apf_levels, (x5, x4, x3, x2), strict=True)):
            coarse, fused = level(coarse, lateral)
            apf.append(coarse)
            if aux and self.auxiliary:
                auxiliary.append(self.auxiliary[index](fused))
        result = self.fab(x5)
        for level, lateral in zip(self.gfu_levels, apf, strict=True):
            result = level(lateral, result)
            gfu.append(result)
        return Pyramid(apf, auxiliary, gfu, self.head(result))

    def forward(self, x: Tensor, aux: bool = False, *, resize: bool = True) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Logits (B, K, H, W); with `aux` also the list of the four auxiliary logits, in the order apf1 to apf4. With
        `resize=False`, each is left at the resolution at which it was computed (main at stride 4, auxiliaries at 32,
        16, 8, and 4; half these strides for S²-FPN34M or with double_resolution)."""
        result = self.pyramid(x, aux=aux)
        maps = [result.logits, *result.auxiliary]
        logits, *auxiliary = [resize_like(each, x) for each in maps] if resize else maps
        return (logits, auxiliary) if aux else logits

    @property
    def apf_levels(self) -> list[nn.Module]:
        """apf1 to apf4, coarse to fine."""
        return [self.apf1, self.apf2, self.apf3, self.apf4]

    @property
    def gfu_levels(self) -> list[nn.Module]:
        """gfu4 to gfu1, coarse to fine."""
        return [self.gfu4, self.gfu3, self.gfu2, self.gfu1]


def build_model(
    name: str,
    *,
    revision: str = "v1",
    num_classes: int,
    encoder_weights: str | Path | None = None,
    normalization: str | None = None,
    **switches: Any,
) -> S2FPN:
    """Builds an S²-FPN.

    Args:
        name: s2fpn18, s2fpn34, s2fpn34m, s2fpn50, s2fpn101, s2fpn152, s2fpn_lite, s2fpn_lite1, or s2fpn_lite2.
        revision: "v1" (the paper's network) or "v2" (the author's rewrite).
        encoder_weights: None, "imagenet", or the path of an ImageNet state dict; loaded after all initialization.
        normalization: a key of NORMALIZATIONS, by default the one that the encoder was trained with.
        switches: the fields of `Switches`.

    Raises ValueError for an unknown name, revision, or normalization, TypeError for a wrong switch, and
    FileNotFoundError if there is no file at `encoder_weights`.
    """
    _check_known(ValueError, "model", name, ENCODERS)
    _check_known(ValueError, "revision", revision, REVISIONS)
    spec = ENCODERS[name]
    normalization = normalization or spec.normalization
    _check_known(ValueError, "normalization", normalization, NORMALIZATIONS)
    for switch in switches:
        _check_known(TypeError, "switch", switch, Switches.__dataclass_fields__)
    if not isinstance(num_classes, int) or num_classes < 1:
        raise ValueError(f"num_classes must be a whole number of at least 1, got {num_classes!r}")
    if encoder_weights not in (None, "imagenet") and not Path(encoder_weights).is_file():
        raise FileNotFoundError(f'encoder_weights is {encoder_weights!r}: neither "imagenet" nor a state dict\'s path')
    config = {"name": name, "revision": revision, "num_classes": num_classes, "normalization": normalization}
    model = S2FPN(spec, Switches(**switches), {**config, **switches})
    if encoder_weights is not None:
        model.encoder.load_imagenet(None if encoder_weights == "imagenet" else encoder_weights)
    return model


def _check_known(error: type[Exception], what: str, value: str, known: Collection[str]) -> None:
    if value not in known:
        raise error(f"unknown {what} {value!r}.{did_you_mean(value, known)} Known: {', '.join(known)}")
