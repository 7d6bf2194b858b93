"""Records what the attention of S²-FPN computes for an image, without a change to the model.

    with AttentionRecorder(model) as recorder:
        model(model.preprocess(images))
    capture = recorder.capture
    capture.levels[3].gates, capture.levels[3].gamma, capture.logits

In both revisions the attention uses strips: feature maps after pooling over the height, with one entry per image column
(`strip_axis="width"`: pooling over the width, one entry per row). In v1 two gates per column weigh two strips; in v2
each pixel has a distribution over the columns and two gates. docs/network.md has the equations.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from s2fpn_lib.model import S2FPN
from s2fpn_lib.model.apf import APF
from s2fpn_lib.model.blocks import resize_like
from s2fpn_lib.model.gfu import GFUv1
from s2fpn_lib.model.modes import evaluation_mode
from s2fpn_lib.model.ssam import STRIP_AXES, ColumnAttention, SSAMv1, StripGate


@dataclass(frozen=True, eq=False)
class LevelCapture:
    """One pyramid level, apf1 (coarsest) to apf4 (finest), for B images, C channels, level size (h, w), and K classes.

    L is the length of a strip: w, or h for strip_axis="width". Tensors are float32 on the model's device. Values of
    parts that are switched off are None.

    Attributes:
        name: apf1 to apf4.
        size: (h, w).
        strip_axis: the axis that SSAM pools over, "height" or "width".
        gamma: the learned scalar g of the blend g * fuse(S) + (1 - g) * R. At 0 the strips have no influence.
        refined: (B, C, h, w) R, the input of SSAM and CRB.
        strip_max: (B, C, L) m = BN1(W maxpool(R)); in v2 the keys of the attention.
        strip_avg: (B, C, L) in v1 a = BN2(W avgpool(R)); in v2 avgpool(R), from which the values are computed.
        gates: in v1 (B, 2, L), the two used channels of A = softmax over channels of m * a, the weights of a and m; in
            v2 (B, 2, h, w), T[:, :2], the weights of q and m.
        query: (B, C, h, w) q = BN2(W R) in v2; None in v1.
        attended_share: (B,) mean |g fuse(S)| / (mean |g fuse(S)| + mean |(1 - g) R|), the share of the strips in the
            blend. gamma alone is not enough to tell it, because the scale of fuse(S) is free.
        crb: (B, C) CRB's channel weights in (0, 1).
        auxiliary: (B, K, h, w) logits of the level's auxiliary head; None in a model without deep supervision.
    """

    name: str
    size: tuple[int, int]
    strip_axis: str | None = None
    gamma: float | None = None
    refined: Tensor | None = None
    strip_max: Tensor | None = None
    strip_avg: Tensor | None = None
    gates: Tensor | None = None
    query: Tensor | None = None
    attended_share: Tensor | None = None
    crb: Tensor | None = None
    auxiliary: Tensor | None = None

    def column_attention(self, y: int, x: int) -> Tensor:
        """The distribution P of pixel (y, x) of the level over strip entries, (B, L); v2 only.

        Raises:
            IndexError: the pixel is outside the level.
            LookupError: there is no such distribution, in v1 or with SSAM off.
        """
        if self.query is None:
            why = "SSAM is off" if self.gates is None else "revision v1 has two gates per column instead"
            raise LookupError(f"{self.name} has no distribution over columns: {why}")
        return ColumnAttention.distribution(self.query[:, :, y, x, None, None], self.strip_max)[:, 0]


@dataclass(frozen=True, eq=False)
class GFUCapture:
    """One upsampling block, gfu4 (coarsest) to gfu1: its two terms, and the gates that weigh them in v2.

    Attributes:
        name: gfu4 to gfu1.
        context: (B, C, h, w) f', from the coarser level; (B, C, 1, 1) with gfu_pool.
        fine: (B, C, h, w) p', from the level itself.
        s1, s2: (B, C, h, w) the gates of v2: s1 on f' (no sigmoid) and s2 in (0, 1) on p'; None in v1.
    """

    name: str
    context: Tensor
    fine: Tensor
    s1: Tensor | None = None
    s2: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Capture:
    """One forward pass.

    Attributes:
        logits: (B, K, H, W), as the model returned them.
        revision: "v1" or "v2".
        levels: apf1 (coarsest) to apf4 (finest).
        gfu: gfu4 (coarsest) to gfu1; None when the model was built with gfu=False.
    """

    logits: Tensor
    revision: str
    levels: list[LevelCapture]
    gfu: list[GFUCapture] | None


class AttentionRecorder:
    """Context manager that records each forward pass of a model inside it; `capture` is the last one.

    It works for every model of `build_model`, in training and evaluation mode, with and without gradients. Recorded
    tensors keep no graph, and no hook is left afterwards, also after an error. Several recorders may record the same
    model. Auxiliary heads that the pass does not run are run by the recorder, in evaluation mode.

    Raises TypeError for any other model: optimized, exported, and compiled models do not call their submodules. A model
    in DistributedDataParallel is unwrapped.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = _network(model)
        self._hooks: ExitStack | None = None
        self._seen: dict[str, Tensor] = {}
        self._capture: Capture | None = None

    @property
    def capture(self) -> Capture:
        """The last forward pass. Raises LookupError if none was recorded."""
        if self._capture is None:
            raise LookupError(
                "no forward pass was recorded: call the model itself, model(x), inside `with AttentionRecorder(model)`"
            )
        return self._capture

    def __enter__(self) -> AttentionRecorder:
        if self._hooks is not None:
            raise RuntimeError("this recorder is recording already: create another one for a nested block")
        with ExitStack() as hooks:  # a hook's handle is a context manager that removes the hook
            hooks.enter_context(self.model.register_forward_pre_hook(lambda *_: self._seen.clear()))
            for name, module in _recorded_modules(self.model).items():
                hooks.enter_context(module.register_forward_hook(partial(self._keep, name)))
            hooks.enter_context(self.model.register_forward_hook(self._finish))
            self._hooks = hooks.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.close()
        self._hooks = None
        self._seen.clear()

    def _keep(self, name: str, module: nn.Module, args: tuple, output: Any) -> None:
        # A level returns its output and the fused map, which the auxiliary head reads
        self._seen[name] = (output[1] if isinstance(output, tuple) else output).detach()

    @torch.no_grad()
    def _finish(self, model: nn.Module, args: tuple, output: Tensor | tuple[Tensor, list[Tensor]]) -> None:
        for index, head in enumerate(self.model.auxiliary, 1):
            if f"apf{index}.auxiliary" not in self._seen:
                with evaluation_mode(head):
                    head(self._seen[f"apf{index}.fused"])  # the head's own hook keeps the result
        seen = {name: tensor.float() for name, tensor in self._seen.items()}
        levels = [_level(f"apf{i}", level, seen) for i, level in enumerate(self.model.apf_levels, 1)]
        self._capture = Capture(
            logits=(output[0] if isinstance(output, tuple) else output).detach().float(),
            revision=self.model.config["revision"],
            levels=levels,
            gfu=[_gfu(name, block, seen) for name, block in _gfu_blocks(self.model).items()] or None,
        )
        self._seen.clear()


def _recorded_modules(model: S2FPN) -> dict[str, nn.Module]:
    """The modules whose outputs are kept, such as "apf1.refined" and "gfu4.conv1", as far as the model has them."""
    found: dict[str, nn.Module] = {}
    for i, level in enumerate(model.apf_levels):
        name = f"apf{i + 1}"
        found[f"{name}.fused"] = level
        if model.auxiliary:
            found[f"{name}.auxiliary"] = model.auxiliary[i]
        if isinstance(level, APF):
            found[f"{name}.refined"] = level.frb
            if level.crb is not None:
                found[f"{name}.crb"] = level.crb.expand
            found |= _children(name, _strip_gate(level), ("bn_max", "bn_avg", "bn_query", "augment", "fuse"))
    for name, block in _gfu_blocks(model).items():
        found |= _children(name, block, ("conv1", "conv2", "s1", "s2"))
    return found


def _children(name: str, module: nn.Module | None, parts: tuple[str, ...]) -> dict[str, nn.Module]:
    return {f"{name}.{part}": getattr(module, part) for part in parts if hasattr(module, part)}


def _level(name: str, level: nn.Module, seen: dict[str, Tensor]) -> LevelCapture:
    crb = seen.get(f"{name}.crb")
    capture = LevelCapture(
        name,
        size=tuple(seen[f"{name}.fused"].shape[-2:]),
        refined=seen.get(f"{name}.refined"),
        crb=None if crb is None else torch.sigmoid(crb).flatten(1),  # (B, C, 1, 1) -> (B, C)
        auxiliary=seen.get(f"{name}.auxiliary"),
    )
    gate = _strip_gate(level)
    if gate is None:
        return capture
    maximum = seen[f"{name}.bn_max"]
    if isinstance(gate, ColumnAttention):
        average = capture.refined.mean(gate.pooled_dim, keepdim=True)
        gates = seen[f"{name}.augment"][:, :2]  # (B, 2, h, w)
    else:
        average = seen[f"{name}.bn_avg"]
        gates = SSAMv1.gates(maximum, average)[:, :2].flatten(2)  # (B, 2, 1, w) or (B, 2, h, 1) -> (B, 2, L)
    gamma = gate.gamma.item()
    strips = (gamma * seen[f"{name}.fuse"]).abs().mean(dim=(1, 2, 3))  # broadcast in the blend, which keeps the mean
    features = ((1 - gamma) * capture.refined).abs().mean(dim=(1, 2, 3))
    return replace(
        capture,
        strip_axis={dim: axis for axis, dim in STRIP_AXES.items()}[gate.pooled_dim],
        gamma=gamma,
        strip_max=maximum.flatten(2),
        strip_avg=average.flatten(2),
        gates=gates,
        query=seen.get(f"{name}.bn_query"),
        attended_share=strips / (strips + features).clamp_min(torch.finfo(torch.float32).tiny),
    )


def _gfu(name: str, block: GFUv1, seen: dict[str, Tensor]) -> GFUCapture:
    fine, reduced, s2 = seen[f"{name}.conv1"], seen[f"{name}.conv2"], seen.get(f"{name}.s2")
    # The resize changes nothing unless the block applies its 1x1 convolution before it
    context = torch.relu(reduced if block.pool else resize_like(reduced, fine))
    return GFUCapture(name, context, fine, seen.get(f"{name}.s1"), None if s2 is None else torch.sigmoid(s2))


def _gfu_blocks(model: S2FPN) -> dict[str, GFUv1]:
    """The blocks gfu4 to gfu1; empty when the model was built with gfu=False."""
    blocks = zip(("gfu4", "gfu3", "gfu2", "gfu1"), model.gfu_levels, strict=True)
    return {name: block for name, block in blocks if isinstance(block, GFUv1)}


def _strip_gate(level: nn.Module) -> StripGate | None:
    """The module that holds the strips, gates, and gamma of a level; None where SSAM is off."""
    ssam = getattr(level, "ssam", None)
    ssam = getattr(ssam, "attention", ssam)  # v2 has it beside its "mlp"
    return ssam if isinstance(ssam, StripGate) else None


def _network(model: Any) -> S2FPN:
    """The S2FPN to hook. Raises TypeError for other models; the message says which model to pass instead."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    if hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None:
        raise TypeError(
            "a compiled model does not call its submodules, so its attention cannot be recorded: pass the network as it"
            " was before torch.compile, and call that inside the block"
        )
    if not isinstance(model, S2FPN):
        raise TypeError(
            f"AttentionRecorder takes a model of build_model or load_model, not {type(model).__name__}. For an "
            "optimized or exported model pass the one that was given to optimize_for_inference or export"
        )
    return model
