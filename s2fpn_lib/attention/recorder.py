"""Records what the attention of S²-FPN computes for an image, without a change to the model.

    with AttentionRecorder(model) as recorder:
        model(model.preprocess(images))
    recorder.capture.levels[3].gates, recorder.capture.logits

Strips are feature maps after pooling over the height, with one entry per image column (`strip_axis="width"`: pooling
over the width, one entry per row). In v1 two gates per column weigh two strips; in v2 each pixel has a distribution
over the columns and two gates. docs/network.md has the equations.
"""

import re
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from s2fpn_lib.model import S2FPN
from s2fpn_lib.model.blocks import resize_like
from s2fpn_lib.model.gfu import GFUv1
from s2fpn_lib.model.ssam import ColumnAttention, SSAMv1, StripGate
from s2fpn_lib.model.tta import evaluation_mode

# The modules whose outputs are kept, as far as the model has them; v2 has its strip gate in ssam.attention
RECORDED = re.compile(
    r"auxiliary\.\d|gfu\d\.(conv1|conv2|s1|s2)|"
    r"apf\d(\.frb|\.crb\.expand|\.ssam(\.attention)?\.(bn_max|bn_avg|bn_query|augment|fuse))?"
)


@dataclass(frozen=True, eq=False)
class LevelCapture:
    """One pyramid level of size (h, w) for B images, C channels, and K classes; strips have L entries.

    L is w, or h for strip_axis="width". Tensors are float32 on the model's device. Values of parts that are switched
    off are None. The gates weigh a and m in v1 (the two used channels of A = softmax over channels of m * a) and q and
    m in v2 (T[:, :2]). `attended_share` is mean |g fuse(S)| / (mean |g fuse(S)| + mean |(1 - g) R|), the share of the
    strips in the blend g * fuse(S) + (1 - g) * R. gamma alone does not tell it, because the scale of fuse(S) is free.
    """

    name: str  # apf1 (coarsest) to apf4 (finest)
    size: tuple[int, int]
    strip_axis: str | None = None  # the axis that SSAM pools over, "height" or "width"
    gamma: float | None = None  # the learned scalar g of the blend; at 0 the strips have no influence
    refined: Tensor | None = None  # (B, C, h, w) R, the input of SSAM and CRB
    strip_max: Tensor | None = None  # (B, C, L) m = BN1(W maxpool(R)); in v2 the keys of the attention
    strip_avg: Tensor | None = None  # (B, C, L) v1: a = BN2(W avgpool(R)); v2: avgpool(R), which gives the values
    gates: Tensor | None = None  # (B, 2, L) in v1, (B, 2, h, w) in v2
    query: Tensor | None = None  # (B, C, h, w) q = BN2(W R) in v2; None in v1
    attended_share: Tensor | None = None  # (B,)
    crb: Tensor | None = None  # (B, C) CRB's channel weights in (0, 1)
    auxiliary: Tensor | None = None  # (B, K, h, w) logits of the auxiliary head

    def column_attention(self, y: int, x: int) -> Tensor:
        """The distribution of pixel (y, x) of the level over strip entries, (B, L); LookupError if there is none."""
        if self.query is None:
            why = "SSAM is off" if self.gates is None else "revision v1 has two gates per column instead"
            raise LookupError(f"{self.name} has no distribution over columns: {why}")
        return ColumnAttention.distribution(self.query[:, :, y, x, None, None], self.strip_max)[:, 0]

    def strip_values(self, y: int, x: int) -> Tensor:
        """(B, L) numbers of the strip entries at a pixel: v2: its attention relative to uniform attention (1); v1: the
        gates of the average strip minus those of the maximum strip."""
        if self.query is None:
            return self.gates[:, 0].flatten(1) - self.gates[:, 1].flatten(1)
        return self.column_attention(y, x) * self.strip_max.shape[-1]

    def of_image(self, index: int) -> Self:
        """The level of one image of the batch, as a batch of one on the CPU."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **{name: value[index : index + 1].cpu() for name, value in tensors.items()})


@dataclass(frozen=True, eq=False)
class GFUCapture:
    """One upsampling block: its two terms, and the gates that weigh them in v2."""

    name: str  # gfu4 (coarsest) to gfu1
    context: Tensor  # (B, C, h, w) f', from the coarser level; (B, C, 1, 1) with gfu_pool
    fine: Tensor  # (B, C, h, w) p', from the level itself
    s1: Tensor | None = None  # (B, C, h, w) the gate on f' (no sigmoid); None in v1
    s2: Tensor | None = None  # (B, C, h, w) the gate on p', in (0, 1); None in v1


@dataclass(frozen=True, eq=False)
class Capture:
    """One forward pass. Levels and blocks are in the order of computation, the coarsest first."""

    logits: Tensor  # (B, K, H, W), as the model returned them
    revision: str  # "v1" or "v2"
    levels: list[LevelCapture]
    gfu: list[GFUCapture] | None  # None when the model was built with gfu=False


class AttentionRecorder:
    """Context manager that records each forward pass of a model inside it, without a graph; `capture` is the last one.

    It takes every model of `build_model`, also wrapped in DistributedDataParallel, and raises TypeError for optimized,
    exported, and compiled ones. Auxiliary heads that the pass leaves out run in evaluation mode.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        if hasattr(self.model, "_orig_mod") or getattr(self.model, "_compiled_call_impl", None) is not None:
            raise TypeError("a compiled model cannot be recorded: pass the network as it was before torch.compile")
        if not isinstance(self.model, S2FPN):
            advice = "for an optimized or exported one pass the one that was given to optimize_for_inference or export"
            raise TypeError(f"pass a model of build_model or load_model, not {type(self.model).__name__}; {advice}")
        self._hooks: ExitStack | None = None
        self._seen: dict[str, Tensor] = {}
        self._capture: Capture | None = None

    @property
    def capture(self) -> Capture:
        """The last forward pass. Raises LookupError if none was recorded."""
        if self._capture is None:
            raise LookupError("nothing was recorded: call the model itself inside `with AttentionRecorder(model)`")
        return self._capture

    def __enter__(self) -> Self:
        if self._hooks is not None:
            raise RuntimeError("this recorder is recording already: create another one for a nested block")
        with ExitStack() as hooks:  # a hook's handle is a context manager that removes the hook
            hooks.enter_context(self.model.register_forward_pre_hook(lambda *_: self._seen.clear()))
            for name, module in self.model.named_modules():
                if RECORDED.fullmatch(name):
                    keep = partial(self._keep, name.replace(".attention", ""))
                    hooks.enter_context(module.register_forward_hook(keep))
            hooks.enter_context(self.model.register_forward_hook(self._finish))
            self._hooks = hooks.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.close()
        self._hooks = None

    def _keep(self, name: str, module: nn.Module, args: tuple, output: Any) -> None:
        # A level returns its output and the fused map, which the auxiliary head reads
        self._seen[name] = (output[1] if isinstance(output, tuple) else output).detach()

    @torch.no_grad()
    def _finish(self, model: nn.Module, args: tuple, output: Tensor | tuple[Tensor, list[Tensor]]) -> None:
        for index, head in enumerate(self.model.auxiliary):
            if f"auxiliary.{index}" not in self._seen:
                with evaluation_mode(head):
                    head(self._seen[f"apf{index + 1}"])  # the head's own hook keeps the result
        seen = {name: tensor.float() for name, tensor in self._seen.items()}
        blocks = zip(("gfu4", "gfu3", "gfu2", "gfu1"), self.model.gfu_levels, strict=True)
        self._capture = Capture(
            logits=(output[0] if isinstance(output, tuple) else output).detach().float(),
            revision=self.model.config["revision"],
            levels=[_level(index, level, seen) for index, level in enumerate(self.model.apf_levels)],
            gfu=[_gfu(name, block, seen) for name, block in blocks if isinstance(block, GFUv1)] or None,
        )
        self._seen.clear()


def _level(index: int, level: nn.Module, seen: dict[str, Tensor]) -> LevelCapture:
    name = f"apf{index + 1}"
    crb, refined, auxiliary = (seen.get(key) for key in (f"{name}.crb.expand", f"{name}.frb", f"auxiliary.{index}"))
    crb = None if crb is None else torch.sigmoid(crb).flatten(1)  # (B, C, 1, 1) -> (B, C)
    capture = LevelCapture(name, tuple(seen[name].shape[-2:]), refined=refined, crb=crb, auxiliary=auxiliary)
    gate = next((module for module in level.modules() if isinstance(module, StripGate)), None)
    if gate is None:
        return capture
    maximum = seen[f"{name}.ssam.bn_max"]
    if isinstance(gate, ColumnAttention):
        average = refined.mean(gate.pooled_dim, keepdim=True)
        gates = seen[f"{name}.ssam.augment"][:, :2]  # (B, 2, h, w)
    else:
        average = seen[f"{name}.ssam.bn_avg"]
        gates = SSAMv1.gates(maximum, average)[:, :2].flatten(2)  # (B, 2, 1, w) or (B, 2, h, 1) -> (B, 2, L)
    gamma = gate.gamma.item()
    strips = (gamma * seen[f"{name}.ssam.fuse"]).abs().mean((1, 2, 3))  # broadcast in the blend, which keeps the mean
    features = ((1 - gamma) * refined).abs().mean((1, 2, 3))
    return replace(
        capture,
        strip_axis="height" if gate.pooled_dim == 2 else "width",
        gamma=gamma,
        strip_max=maximum.flatten(2),
        strip_avg=average.flatten(2),
        gates=gates,
        query=seen.get(f"{name}.ssam.bn_query"),
        attended_share=strips / (strips + features).clamp_min(torch.finfo(torch.float32).tiny),
    )


def _gfu(name: str, block: GFUv1, seen: dict[str, Tensor]) -> GFUCapture:
    fine, reduced, s2 = seen[f"{name}.conv1"], seen[f"{name}.conv2"], seen.get(f"{name}.s2")
    # The resize changes nothing unless the block applies its 1x1 convolution before it
    context = torch.relu(reduced if block.pool else resize_like(reduced, fine))
    return GFUCapture(name, context, fine, seen.get(f"{name}.s1"), None if s2 is None else torch.sigmoid(s2))
