"""Replay check: a training step computed twice from the same state must give the same bits.

A faulty processor, faulty memory, or a data race changes a training without an error message. The check compares
hashes of every layer's output and of every parameter's gradient, and names the first that differs.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from s2fpn_lib.state import TrainingState


class ReplayMismatch(RuntimeError):
    """The same step gave other results when it was computed again; the message names the first layer."""


def computed_twice(state: TrainingState, compute: Callable[[], Tensor]) -> Tensor:
    """Calls `compute`, which sets the gradients of a step and returns the loss, twice from the same state.

    The buffers of the network, such as the statistics of BatchNorm, are set back in between; `compute` seeds its random
    numbers itself. Waits for the device once. Returns the loss of the second call, whose gradients and buffers stay.

    Raises ReplayMismatch if a hash differs.
    """
    before = [buffer.clone() for buffer in state.model.buffers()]
    calls: list[dict[str, Tensor]] = []
    for _ in range(2):
        for buffer, value in zip(state.model.buffers(), before, strict=True):
            buffer.copy_(value)
        with _output_hashes(state) as hashes:
            loss = compute()
        gradients = [(name, each.grad) for name, each in state.model.named_parameters() if each.grad is not None]
        # the gradients of the last layer are computed first
        hashes |= {f"the gradient of {name}": torch.hash_tensor(each) for name, each in reversed(gradients)}
        calls.append(hashes)
    first, second = (torch.stack(list(hashes.values())).view(torch.int64) for hashes in calls)
    names = [name for name, differs in zip(calls[0], (first != second).tolist(), strict=True) if differs]
    if names:
        what = "computed twice from the same state, it gave two results"
        place = f"{what}: {len(names)} of {len(first)} hashes differ, first {names[0]}"
        raise ReplayMismatch(
            state.report(state.step, place, "test the memory and the processor, or use another machine")
        )
    return loss


@contextmanager
def _output_hashes(state: TrainingState) -> Iterator[dict[str, Tensor]]:
    """The hashes of the tensors that the layers return, in the order of their calls; empty for a compiled network."""
    hashes: dict[str, Tensor] = {}

    def record(name: str) -> Callable[[nn.Module, tuple, object], None]:
        def hook(module: nn.Module, _: tuple, output: object) -> None:
            if isinstance(output, Tensor):
                hashes[f"the output of {name}, call {len(hashes)}"] = torch.hash_tensor(output.detach())

        return hook

    layers = [] if state.config.compile else [*state.model.named_modules()]
    layers = [(name, each) for name, each in layers if not list(each.children())]
    handles = [each.register_forward_hook(record(name)) for name, each in layers]
    try:
        yield hashes
    finally:
        for handle in handles:
            handle.remove()
