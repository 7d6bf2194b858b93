"""Replay check: a training step computed twice from the same state must give the same bits.

A faulty processor, faulty memory, or a data race changes a training without an error message. The check compares the
SHA-256 of every parameter's gradient, and the XOR of every layer's output (`torch.hash_tensor`, which is computed where
the output is), and names the first that differs.
"""

import hashlib
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn

from s2fpn_lib.state import TrainingState


class ReplayMismatch(RuntimeError):
    """The same step gave other results when it was computed again; the message names the first layer."""


def computed_twice(state: TrainingState, compute: Callable[[], Tensor]) -> Tensor:
    """Calls `compute`, which seeds its random numbers and sets the gradients of a step, twice from the same state.

    The buffers of the network, such as the statistics of BatchNorm, are set back in between. Waits for the device.
    Returns the loss of the second call, whose gradients and buffers stay; raises ReplayMismatch if a hash differs.
    """
    before = [buffer.clone() for buffer in state.model.buffers()]
    modules = () if state.config.compile else state.model.named_modules()  # a compiled network calls no hooks
    layers = [(name, module) for name, module in modules if not list(module.children())]
    calls: list[dict[str, str]] = []
    for _ in range(2):
        for buffer, value in zip(state.model.buffers(), before, strict=True):
            buffer.copy_(value)
        outputs: dict[str, Tensor] = {}  # hashes in the order of the calls
        with ExitStack() as hooks:
            for name, layer in layers:
                hooks.enter_context(layer.register_forward_hook(partial(_record, outputs, name)))
            loss = compute()
        hashes = {name: str(each.item()) for name, each in outputs.items()}
        for name, parameter in reversed([*state.model.named_parameters()]):  # the last layer's are computed first
            if parameter.grad is not None:
                content = parameter.grad.cpu().reshape(-1).view(torch.uint8).numpy()
                hashes[f"the gradient of {name}"] = hashlib.sha256(content).hexdigest()
        calls.append(hashes)
    if names := [name for name, value in calls[0].items() if value != calls[1][name]]:
        what = f"computed twice from the same state, {len(names)} of {len(calls[0])} hashes differ, first {names[0]}"
        advice = "test the processor and the memory of this machine, or continue on another one"
        raise ReplayMismatch(state.report(state.step, what, advice))
    return loss


def _record(hashes: dict[str, Tensor], name: str, module: nn.Module, inputs: tuple, output: object) -> None:
    if isinstance(output, Tensor):
        hashes[f"the output of {name}, call {len(hashes)}"] = torch.hash_tensor(output.detach())
