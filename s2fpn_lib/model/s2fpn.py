"""S²-FPN: encoder, pyramid of APFs, GFU top-down path and head (SPEC "Data flow"; paper, overview figure)."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from s2fpn_lib.model.apf import APF, AuxiliaryHead, FPNLevel
from s2fpn_lib.model.blocks import DROPOUT, ConvBNAct, check_revision, plain_conv, resize_aligned
from s2fpn_lib.model.encoders import ENCODERS, EncoderSpec
from s2fpn_lib.model.gfu import GFU, UpsampleAdd

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
    """The parts that an ablation turns off or varies; the defaults are the published network.

    ssam=False: identity gate. crb=False: plain convolution branch. apf=False: FPN sum of lateral and upsampled.
    gfu=False: upsample and add. deep_supervision=False: no auxiliary heads. strip_axis: the axis that SSAM pools away,
    "height" as published or "width". gfu_pool: global pooling in GFU, as the paper draws it. gamma_init: where SSAM's
    learned blend starts. dropout: the rate everywhere. double_resolution: the encoder's stem halves the resolution once
    less, as in S²-FPN34M (which is S²-FPN34 with this switch): every level at twice the height and width.
    """

    ssam: bool = True
    crb: bool = True
    apf: bool = True
    gfu: bool = True
    deep_supervision: bool = True
    strip_axis: str = "height"
    gfu_pool: bool = False
    gamma_init: float = 0.0
    dropout: float = DROPOUT
    double_resolution: bool = False

    def __post_init__(self) -> None:
        for declared in fields(self):
            value, kind = getattr(self, declared.name), type(declared.default)
            fits = isinstance(value, int | float) if kind is float else isinstance(value, kind)
            if not fits or (isinstance(value, bool) and kind is not bool):
                raise TypeError(f"switch {declared.name} is {value!r}; it takes {kind.__name__}")


@dataclass
class Pyramid:
    """Everything that one forward pass makes, each at its own resolution; coarse to fine, as computed.

    apf: the four results of apf1 to apf4; auxiliary: their class logits (empty unless asked for); gfu: the results of
    gfu4 to gfu1; logits: the head's (B, K, H/4, W/4).
    """

    apf: list[Tensor]
    auxiliary: list[Tensor]
    gfu: list[Tensor]
    logits: Tensor


class S2FPN(nn.Module):
    """The network. `forward(x)` gives logits (B, K, H, W) for normalised float images (B, 3, H, W), H and W from 32 up.

    Build it with `build_model`. `config` holds what rebuilds it: `build_model(**model.config)`.
    """

    def __init__(
        self,
        spec: EncoderSpec,
        *,
        revision: str,
        num_classes: int,
        switches: Switches,
        normalization: str,
        config: dict[str, Any],
    ) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.encoder = spec.build(double_resolution=switches.double_resolution)
        self.project = nn.ModuleList(
            nn.Identity()
            if channels == width
            else ConvBNAct(channels, width, spec.projection_kernel, revision=revision)
            for channels, width in zip(spec.channels, spec.widths, strict=True)
        )
        p1, p2, p3, p4 = spec.pyramid
        c2, c3, c4, c5 = spec.widths
        self.cfgb = nn.Sequential(
            ConvBNAct(c5, c5, stride=2, groups=c5, revision=revision), nn.Dropout(switches.dropout)
        )
        self.fab = nn.Sequential(
            ConvBNAct(c5, p1, groups=math.gcd(c5, p1), revision=revision), nn.Dropout(switches.dropout)
        )
        for level, high, low, out in ((1, c5, c5, p1), (2, p1, c4, p2), (3, p2, c3, p3), (4, p3, c2, p4)):
            self.add_module(f"apf{level}", _fusion_level(high, low, out, revision, switches))
        self.auxiliary = nn.ModuleList(
            AuxiliaryHead(width, num_classes, revision=revision, dropout=switches.dropout)
            for width in (spec.pyramid if switches.deep_supervision else ())
        )
        for level, coarse, width in ((4, p1, p1), (3, p1, p2), (2, p2, p3), (1, p3, p4)):
            self.add_module(f"gfu{level}", _upsampling_level(coarse, width, revision, switches))
        self.head = plain_conv(p4, num_classes)
        mean, std = NORMALIZATIONS[normalization]
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        _initialize(self, skip=self.encoder)

    def preprocess(self, images: Tensor) -> Tensor:
        """uint8 RGB (B, 3, H, W) -> the network's float32 input, normalised, on the network's device."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                f"preprocess needs uint8 RGB images (B, 3, H, W), got {images.dtype} {tuple(images.shape)}"
            )
        return (images.to(self.mean.device, non_blocking=True).float() - self.mean) / self.std

    def pyramid(self, x: Tensor, *, aux: bool = False) -> Pyramid:
        """Run the network without the final resize. The auxiliary heads run only with `aux`."""
        _check_input(x)
        x2, x3, x4, x5 = (project(level) for project, level in zip(self.project, self.encoder(x), strict=True))
        apf: list[Tensor] = []
        auxiliary: list[Tensor] = []
        coarse = self.cfgb(x5)
        for index, (level, lateral) in enumerate(zip(self.apf_levels, (x5, x4, x3, x2), strict=True)):
            coarse, fused = level(coarse, lateral)
            apf.append(coarse)
            if aux and self.auxiliary:
                auxiliary.append(self.auxiliary[index](fused))
        gfu: list[Tensor] = []
        result = self.fab(x5)
        for level, lateral in zip(self.gfu_levels, apf, strict=True):
            result = level(lateral, result)
            gfu.append(result)
        return Pyramid(apf, auxiliary, gfu, self.head(result))

    def forward(self, x: Tensor, aux: bool = False, *, resize: bool = True) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Logits (B, K, H, W); with `aux` also the list of the four auxiliary logits, in the order apf1 to apf4.

        `resize=False` leaves all of them at the resolution they were computed at (main at stride 4, auxiliaries at
        strides 32, 16, 8 and 4; twice that resolution for S²-FPN34M or with double_resolution).
        """
        result = self.pyramid(x, aux=aux)
        logits, auxiliary = result.logits, result.auxiliary
        if resize:
            logits = resize_aligned(logits, x.shape[-2:])
            auxiliary = [resize_aligned(level, x.shape[-2:]) for level in auxiliary]
        return (logits, auxiliary) if aux else logits

    @property
    def apf_levels(self) -> list[nn.Module]:
        """apf1 to apf4, coarse to fine."""
        return [self.apf1, self.apf2, self.apf3, self.apf4]

    @property
    def gfu_levels(self) -> list[nn.Module]:
        """gfu4 to gfu1, coarse to fine."""
        return [self.gfu4, self.gfu3, self.gfu2, self.gfu1]

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The parameters of the pretrained encoder and of everything else, for two learning rates."""
        encoder = list(self.encoder.parameters())
        known = {id(parameter) for parameter in encoder}
        return {
            "encoder": encoder,
            "decoder": [parameter for parameter in self.parameters() if id(parameter) not in known],
        }


def build_model(
    name: str,
    *,
    revision: str = "v1",
    num_classes: int,
    encoder_weights: str | Path | None = None,
    normalization: str | None = None,
    **switches: Any,
) -> S2FPN:
    """Build an S²-FPN.

    name: s2fpn18, s2fpn34, s2fpn34m, s2fpn50, s2fpn101, s2fpn152 or s2fpn_lite. revision: "v1" (the paper's) or "v2"
    (the author's rewrite). encoder_weights: None, "imagenet", or the path of an ImageNet state dict; they are loaded
    into the finished network, after every initialisation. normalization: a key of NORMALIZATIONS, by default the one
    that the encoder was trained with. switches: the fields of `Switches`.

    Raises ValueError for an unknown name or value, TypeError for an unknown switch, each with the nearest known one, or
    for a switch of the wrong type, and FileNotFoundError for encoder weights that are not there.
    """
    spec = ENCODERS.get(name)
    if spec is None:
        raise ValueError(f"unknown model {name!r}{_hint(name, ENCODERS)}. Known: {', '.join(ENCODERS)}")
    normalization = normalization or spec.normalization
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"unknown normalization {normalization!r}. Known: {', '.join(NORMALIZATIONS)}")
    if not isinstance(num_classes, int) or num_classes < 1:
        raise ValueError(f"num_classes must be a whole number of at least 1, got {num_classes!r}")
    known = Switches.__dataclass_fields__
    for switch in switches:
        if switch not in known:
            raise TypeError(f"unknown switch {switch!r}{_hint(switch, known)}. Known: {', '.join(known)}")
    config = {
        "name": name,
        "revision": check_revision(revision),
        "num_classes": num_classes,
        "normalization": normalization,
        **switches,
    }
    if encoder_weights not in (None, "imagenet") and not Path(encoder_weights).is_file():
        raise FileNotFoundError(f'encoder_weights is {encoder_weights!r}: neither "imagenet" nor a state dict\'s path')
    model = S2FPN(
        spec,
        revision=revision,
        num_classes=num_classes,
        switches=Switches(**switches),
        normalization=normalization,
        config=config,
    )
    if encoder_weights is not None:
        model.encoder.load_imagenet(None if encoder_weights == "imagenet" else encoder_weights)
    return model


def _hint(word: str, known: Any) -> str:
    near = get_close_matches(word, known, n=1)
    return f", did you mean {near[0]!r}?" if near else ""


def _fusion_level(high: int, low: int, out: int, revision: str, switches: Switches) -> nn.Module:
    if not switches.apf:
        return FPNLevel(high, low, out, revision=revision)
    return APF(
        high,
        low,
        out,
        revision=revision,
        ssam=switches.ssam,
        crb=switches.crb,
        strip_axis=switches.strip_axis,
        dropout=switches.dropout,
        gamma_init=switches.gamma_init,
    )


def _upsampling_level(coarse: int, width: int, revision: str, switches: Switches) -> nn.Module:
    if not switches.gfu:
        return UpsampleAdd(coarse, width)
    return GFU(coarse, width, revision=revision, pool=switches.gfu_pool)


def _initialize(model: nn.Module, *, skip: nn.Module) -> None:
    """He initialisation for the convolutions outside the encoder, which keeps its own."""
    inside = set(skip.modules())
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module not in inside:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _check_input(x: Tensor) -> None:
    if x.ndim != 4 or x.shape[1] != 3:
        raise ValueError(f"S2FPN needs images (B, 3, H, W), got shape {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"S2FPN needs normalised float images, got {x.dtype}: pass them through model.preprocess first")
    if min(x.shape[-2:]) < MIN_SIZE:
        raise ValueError(f"S2FPN needs at least {MIN_SIZE}x{MIN_SIZE} pixels, got {x.shape[-2]}x{x.shape[-1]}")
