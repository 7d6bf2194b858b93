"""What a training step on a GPU spends its time on: its costliest kernels, and its depthwise convolutions in four ways.

Both functions give rows for profile.jsonl.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from s2fpn_lib.benchmark.timing import time_in_turns
from s2fpn_lib.benchmark.training import make_step

LAYERS = ((144, 3, 2, 180, 240), (240, 5, 1, 90, 120), (672, 5, 1, 45, 60))  # channels, kernel, stride, height, width


def step_kernels(name: str, size: tuple[int, int], batch: int, device: torch.device) -> Any:
    """The 15 costliest kernels, on a CPU operators, of one step of the preset `modern`."""
    step = make_step("modern", name, size, batch, str(device), resident=True)
    for _ in range(3):
        step()
    with torch.profiler.profile() as profiler:
        step()
    key = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    for event in sorted(profiler.key_averages(), key=lambda event: -getattr(event, key))[:15]:
        row = {"network": name, "batch": batch, "kernel": event.key, "calls": event.count}
        yield "profile.jsonl", {**row, "ms": round(getattr(event, key) / 1e3, 3)}
    make_step.cache_clear()


def depthwise_ways(batch: int, device: torch.device, shrink: int = 1, **watch: Any) -> Any:
    """Forward and backward pass of `LAYERS` in bfloat16, in turns; `shrink` divides their height and width."""
    compiled = torch.compile(shifted, dynamic=False)
    for channels, k, stride, height, width in LAYERS:
        x = torch.randn(batch, channels, height // shrink, width // shrink, device=device, dtype=torch.bfloat16)
        weight = torch.randn(channels, 1, k, k, device=device, dtype=torch.bfloat16)
        conv = partial(conv2d, stride=stride, padding=k // 2, groups=channels)
        last = x.to(memory_format=torch.channels_last)
        calls = {"channels_last": (conv, last), "NCHW": (conv, x), "without cuDNN": (conv, x, False)}
        calls["shifted"] = partial(compiled, stride=stride), last
        timings = time_in_turns({way: partial(both, weight, *call) for way, call in calls.items()}, device, **watch)
        for way, timing in timings.items():
            layer = {"channels": channels, "kernel": k, "stride": stride, "size": list(x.shape[2:])}
            yield "profile.jsonl", {"batch": batch, **layer, "way": way, **timing.row()}


def both(weight: Tensor, layer: Any, x: Tensor, cudnn: bool = True) -> tuple[Tensor, ...]:
    """The gradients of a layer's sum with regard to x and weight."""
    inputs = [each.detach().requires_grad_() for each in (x, weight)]
    with torch.backends.cudnn.flags(enabled=cudnn):
        return torch.autograd.grad(layer(*inputs).sum(), inputs)


def shifted(x: Tensor, weight: Tensor, *, stride: int) -> Tensor:
    """The depthwise convolution as a sum of shifted products, which torch.compile makes one kernel."""
    k = weight.shape[-1]
    x, (rows, columns) = pad(x, [k // 2] * 4), x.shape[2:]
    shifts = ((x[..., i : i + rows : stride, j : j + columns : stride], i, j) for i in range(k) for j in range(k))
    return sum(part * weight[:, 0, i, j, None, None] for part, i, j in shifts)
