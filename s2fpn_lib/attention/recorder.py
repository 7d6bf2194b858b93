"""What the attention of S²-FPN does with an image: a recorder beside the model, which stays as it is.

    with AttentionRecorder(model) as recorder:
        model(model.preprocess(images))
    capture = recorder.capture
    capture.levels[3].gates, capture.levels[3].gamma, capture.logits

In both revisions attention runs over strips: what is left of a map when its height has been pooled away, one entry per
image column (`strip_axis="width"`: one per row). v1 weighs the two strips of a column by two gates; in v2 every pixel
holds a distribution over the columns, and two gate maps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from s2fpn_lib.model import S2FPN
from s2fpn_lib.model.apf import APF
from s2fpn_lib.model.blocks import resize_aligned
from s2fpn_lib.model.gfu import GFUv1, GFUv2
from s2fpn_lib.model.modes import evaluation_mode
from s2fpn_lib.model.ssam import STRIP_AXES, ColumnAttention, SSAMv1, StripGate


@dataclass(frozen=True, eq=False)
class LevelCapture:
    """One level of the pyramid, apf1 (coarsest) to apf4 (finest). B images, C channels, level size (h, w), K classes.

    L is the length of a strip: w, or h for strip_axis="width". Tensors are float32 on the model's device. What a
    switched-off part would have made is None.

    Attributes:
        name: apf1 to apf4.
        size: (h, w).
        strip_axis: the axis that SSAM pools away, "height" or "width".
        gamma: the learned scalar g of the blend g * fuse(S) + (1 - g) * R. At 0 the strips have no influence.
        refined: (B, C, h, w) R, what SSAM and CRB read.
        strip_max: (B, C, L) m = BN1(W maxpool(R)). v2: the keys of its attention.
        strip_avg: (B, C, L) v1: a = BN2(W avgpool(R)); v2: avgpool(R), from which the values come.
        gates: v1 (B, 2, L), the two used channels of A = softmax over channels of m * a, the first weighs a and the
            second m; v2 (B, 2, h, w), T[:, :2], the first weighs q and the second m.
        query: (B, C, h, w) v2: q = BN2(W R); None in v1.
        attended_share: (B,) mean |g fuse(S)| / (mean |g fuse(S)| + mean |(1 - g) R|): how much of the blend the strips
            make up. gamma alone does not tell, for the scale of fuse(S) is free.
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
        """v2: (B, L) P of the level's pixel (y, x), a distribution over strip entries.

        Raises IndexError outside of the level and LookupError where there is none: in v1, or with SSAM off.
        """
        keys = self._keys()
        return ColumnAttention.distribution(self.query[:, :, y, x, None, None], keys)[:, 0]

    @property
    def columns(self) -> Tensor | None:
        """(B, L, h * w) P of every pixel, None in v1. Made on each access: 4 L h w bytes an image (apf4 of 360 x 480:
        5 MB; of 1024 x 2048: 268 MB)."""
        if self.query is None:
            return None
        return ColumnAttention.distribution(self.query, self._keys()).transpose(1, 2)

    def _keys(self) -> Tensor:
        if self.query is None:
            why = "SSAM is off" if self.gates is None else "revision v1 has two gates a column instead"
            raise LookupError(f"{self.name} has no distribution over columns: {why}")
        return self.strip_max


@dataclass(frozen=True, eq=False)
class GFUCapture:
    """One upsampling block, gfu4 (coarsest) to gfu1: what is added (v1), and the gates that weigh it (v2).

    Attributes:
        name: gfu4 to gfu1.
        context: (B, C, h, w) f', what comes down from the coarser level; (B, C, 1, 1) with gfu_pool.
        fine: (B, C, h, w) p', the level's own.
        s1, s2: (B, C, h, w) the gates of v2, s1 on f' (no sigmoid) and s2 in (0, 1) on p'; None in v1.
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
    """Context manager that records every forward pass of a model inside it; `capture` is the last one.

    Works for every model of `build_model`, in training and evaluation mode, with and without gradients: nothing that is
    recorded keeps a graph, and afterwards no hook is left, whatever happened inside. Several recorders may record the
    same model. Auxiliary heads that the pass leaves out run for the recorder, in evaluation mode.

    Raises TypeError for anything but such a model: optimized, exported and compiled ones run without their parts.
    A model wrapped in DistributedDataParallel is unwrapped.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = _network(model)
        self._hooks: list[Any] = []
        self._seen: dict[str, Any] = {}
        self._capture: Capture | None = None

    @property
    def capture(self) -> Capture:
        """The last forward pass; LookupError where none was recorded."""
        if self._capture is None:
            raise LookupError(
                "no forward pass was recorded: call the model itself, model(x), inside `with AttentionRecorder(model)`"
            )
        return self._capture

    def __enter__(self) -> AttentionRecorder:
        if self._hooks:
            raise RuntimeError("this recorder is recording already: make another one for a nested block")
        try:
            self._hook()
        except BaseException:
            self._unhook()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._unhook()

    def _unhook(self) -> None:
        while self._hooks:
            self._hooks.pop().remove()
        self._seen = {}

    def _hook(self) -> None:
        model = self.model
        self._hooks.append(model.register_forward_pre_hook(lambda *_: self._seen.clear()))
        for index, level in enumerate(model.apf_levels):
            name = f"apf{index + 1}"
            self._keep(level, f"{name}.fused", lambda args, output: output[1])
            if model.auxiliary:
                self._keep(model.auxiliary[index], f"{name}.auxiliary")
            if isinstance(level, APF):
                self._keep(level.frb, f"{name}.refined")
                self._hook_ssam(name, level.ssam)
                if level.crb is not None:
                    self._keep(level.crb.expand, f"{name}.crb")
        for name, block in _gfu_blocks(model).items():
            for part in ("conv1", "conv2", "s1", "s2") if isinstance(block, GFUv2) else ("conv1", "conv2"):
                self._keep(getattr(block, part), f"{name}.{part}")
        self._hooks.append(model.register_forward_hook(lambda module, args, output: self._finish(output)))

    def _hook_ssam(self, name: str, ssam: nn.Module) -> None:
        gate = _strip_gate(ssam)
        if gate is None:
            return
        self._keep(gate.bn_max, f"{name}.max")
        self._keep(gate.fuse, f"{name}.fuse")
        if isinstance(gate, ColumnAttention):
            self._keep(gate.value, f"{name}.avg", lambda args, output: args[0])
            self._keep(gate.bn_query, f"{name}.query")
            self._keep(gate.augment, f"{name}.augment")
        else:
            self._keep(gate.bn_avg, f"{name}.avg")

    def _keep(self, module: nn.Module, key: str, choose: Callable[[tuple, Any], Tensor] | None = None) -> None:
        """Keeps what `choose` takes of the module's arguments and output (None: the output), detached."""

        def hook(_: nn.Module, args: tuple, output: Any) -> None:
            self._seen[key] = (output if choose is None else choose(args, output)).detach()

        self._hooks.append(module.register_forward_hook(hook))

    @torch.no_grad()
    def _finish(self, output: Tensor | tuple[Tensor, list[Tensor]]) -> None:
        for index, head in enumerate(self.model.auxiliary):
            if f"apf{index + 1}.auxiliary" not in self._seen:
                with evaluation_mode(head):
                    head(self._seen[f"apf{index + 1}.fused"])  # its own hook keeps the result
        self._capture = Capture(
            logits=(output[0] if isinstance(output, tuple) else output).detach().float(),
            revision=self.model.config["revision"],
            levels=[self._level(f"apf{i}", level) for i, level in enumerate(self.model.apf_levels, 1)],
            gfu=[self._gfu(name, block) for name, block in _gfu_blocks(self.model).items()] or None,
        )
        self._seen.clear()

    def _recorded(self, key: str) -> Tensor | None:
        """What was kept under `key`, as float32; None where the model has no such part."""
        tensor = self._seen.get(key)
        return None if tensor is None else tensor.float()

    def _level(self, name: str, level: nn.Module) -> LevelCapture:
        crb = self._recorded(f"{name}.crb")
        capture = LevelCapture(
            name,
            size=tuple(self._seen[f"{name}.fused"].shape[-2:]),
            refined=self._recorded(f"{name}.refined"),
            crb=None if crb is None else torch.sigmoid(crb).flatten(1),  # (B, C, 1, 1) -> (B, C)
            auxiliary=self._recorded(f"{name}.auxiliary"),
        )
        gate = _strip_gate(getattr(level, "ssam", None))
        return capture if gate is None else self._with_strips(capture, gate)

    def _with_strips(self, level: LevelCapture, gate: StripGate) -> LevelCapture:
        maximum, average, fused = (self._recorded(f"{level.name}.{part}") for part in ("max", "avg", "fuse"))
        gamma = gate.gamma.item()
        strips = (gamma * fused).abs().mean(dim=(1, 2, 3))  # broadcast over the pooled axis, which changes no mean
        own = ((1 - gamma) * level.refined).abs().mean(dim=(1, 2, 3))
        if isinstance(gate, ColumnAttention):
            gates = self._recorded(f"{level.name}.augment")[:, :2]  # (B, 2, h, w)
        else:
            gates = SSAMv1.gates(maximum, average)[:, :2].flatten(2)  # (B, 2, 1, w) or (B, 2, h, 1) -> (B, 2, L)
        return replace(
            level,
            strip_axis={dim: axis for axis, dim in STRIP_AXES.items()}[gate.pooled_dim],
            gamma=gamma,
            strip_max=maximum.flatten(2),
            strip_avg=average.flatten(2),
            gates=gates,
            query=self._recorded(f"{level.name}.query"),
            attended_share=strips / (strips + own).clamp_min(torch.finfo(torch.float32).tiny),
        )

    def _gfu(self, name: str, block: GFUv1) -> GFUCapture:
        fine, reduced = self._recorded(f"{name}.conv1"), self._recorded(f"{name}.conv2")
        s2 = self._recorded(f"{name}.s2")
        return GFUCapture(
            name,
            # Already at this size, but for a block that applies its 1x1 convolution before the resize
            context=torch.relu(reduced if block.pool else resize_aligned(reduced, fine.shape[-2:])),
            fine=fine,
            s1=self._recorded(f"{name}.s1"),
            s2=None if s2 is None else torch.sigmoid(s2),
        )


def _gfu_blocks(model: S2FPN) -> dict[str, GFUv1]:
    """gfu4 to gfu1 where they are GFUs, empty for the substitute."""
    names = ("gfu4", "gfu3", "gfu2", "gfu1")
    blocks = zip(names, model.gfu_levels, strict=True)
    return {name: block for name, block in blocks if isinstance(block, GFUv1)}


def _strip_gate(ssam: nn.Module | None) -> StripGate | None:
    """The part of a level's SSAM that holds strips, gates and gamma; None where SSAM is off."""
    ssam = getattr(ssam, "attention", ssam)  # v2 keeps it beside its "mlp"
    return ssam if isinstance(ssam, StripGate) else None


def _network(model: Any) -> S2FPN:
    """The S2FPN to hook; TypeError with the way out for anything else."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    if hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None:
        raise TypeError(
            "a compiled model runs past its parts, so that nothing of its attention can be recorded: pass the network "
            "as it was before torch.compile, and call that inside the block"
        )
    if not isinstance(model, S2FPN):
        raise TypeError(
            f"AttentionRecorder takes a model made by build_model or load_model, got {type(model).__name__}. Of an "
            "optimized or exported model pass the one that was given to optimize_for_inference or export"
        )
    return model
