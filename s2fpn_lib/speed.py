"""Speed, measured so that the number can be trusted: warmed up until stable, repeated, with its spread and protocol.

The timed graph is the scored graph: every network row ends with logits at the input's size, every end-to-end row begins
with a uint8 image and ends with its class ids. Ratios are within one call of `measure_rows`, on one machine.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from s2fpn_lib import runs
from s2fpn_lib.complexity import measure_complexity
from s2fpn_lib.metrics import class_ids
from s2fpn_lib.model import ENCODERS, build_model
from s2fpn_lib.optimize import BACKENDS, OptimizedModel, optimize_for_inference

# Plain baselines: torchvision's segmentation networks, untrained, with their one output.
BASELINES = ("lraspp_mobilenet_v3_large", "fcn_resnet50", "deeplabv3_resnet50")
PUBLISHED = "published"
STABLE = 0.05  # warm-up ends when two successive medians agree within this share
WARMUP_CALLS = 3  # in each of these medians
WARMUP_SECONDS = 20.0  # at most


@dataclass(frozen=True)
class Timing:
    """Seconds a call took: one list a repeat."""

    repeats: tuple[tuple[float, ...], ...]

    @property
    def p50(self) -> float:
        """Median of the repeats' medians."""
        return statistics.median(statistics.median(calls) for calls in self.repeats)

    @property
    def p90(self) -> float:
        """Nine of ten calls of all repeats took at most this long."""
        calls = sorted(seconds for repeat in self.repeats for seconds in repeat)
        return calls[min(len(calls) - 1, int(0.9 * len(calls)))]

    @property
    def spread(self) -> float:
        """(slowest - fastest) of the repeats' medians, as a share of p50."""
        medians = [statistics.median(calls) for calls in self.repeats]
        return (max(medians) - min(medians)) / self.p50


def time_calls(
    call: Callable[[], Any], device: torch.device, *, repeats: int = 3, seconds: float = 1.0, calls: int = 5
) -> Timing:
    """Times `call`: a warm-up until stable, then `repeats` times at least `calls` calls and `seconds` seconds.

    On CUDA each call is timed by events on its stream, and a repeat ends with a synchronisation.
    """
    stopwatch = _cuda_seconds if device.type == "cuda" else _cpu_seconds
    _warm_up(call, stopwatch)
    measured = []
    for _ in range(repeats):
        times: list[float] = []
        end = time.perf_counter() + seconds
        while len(times) < calls or time.perf_counter() < end:
            times.append(stopwatch(call))
        measured.append(tuple(times))
    return Timing(tuple(measured))


def measure_rows(
    names: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    *,
    revisions: Sequence[str] = ("v1",),
    backends: Sequence[str] = (PUBLISHED, "eager"),
    precisions: Sequence[str] = ("float32",),
    batches: Sequence[int] = (1,),
    num_classes: int = 19,
    device: torch.device | None = None,
    repeats: int = 3,
    seconds: float = 1.0,
) -> Iterator[dict[str, Any]]:
    """One row a network, revision, size, batch, backend, precision and stage, as it is measured.

    names: of `build_model`, or of `BASELINES`, which have no revision and run as they are. backends: "published" is
    the published code's way (auxiliary heads and four more full-size interpolations, batch norms unfolded, contiguous
    layout), the others those of `optimize_for_inference`. Weights are untrained, which changes no time.

    A row holds, besides its protocol: p50_ms, p90_ms, fps (batch / p50), spread, ratio (p50 of the published row of the
    same network, size and batch / p50; empty where that was not measured), parameters_m, gmacs (one is 2e9 floating-
    point operations), peak_mb (of the whole process on a CPU), max_difference (of logits, by optimisation).
    """
    device = device or torch.device("cpu")
    common = session(device)
    for name in names:
        if name not in ENCODERS and name not in BASELINES:
            raise ValueError(f"unknown network {name!r}. Known: {', '.join([*ENCODERS, *BASELINES])}")
        for revision in revisions if name in ENCODERS else ("",):
            model = _network(name, revision, num_classes).to(device).eval()
            for height, width in sizes:
                counted = measure_complexity(model, (height, width))
                for batch in batches:
                    images = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8)
                    published: dict[str, float] = {}
                    for backend, precision in _ways(name, backends, precisions):
                        row = {
                            "network": name,
                            "revision": revision,
                            "height": height,
                            "width": width,
                            "batch": batch,
                            "backend": backend,
                            "precision": precision,
                            "parameters_m": round(counted.megaparameters, 3),
                            "gmacs": round(batch * counted.gigamacs, 3),
                        }
                        for measured in _stages(model, images, backend, precision, device, repeats, seconds):
                            stage, p50 = measured["stage"], measured["p50_ms"]
                            if backend == PUBLISHED:
                                published[stage] = p50
                            ratio = round(published[stage] / p50, 3) if stage in published else None
                            yield {**row, **measured, "ratio": ratio, **common}


def _ways(name: str, backends: Sequence[str], precisions: Sequence[str]) -> list[tuple[str, str]]:
    if name in BASELINES:
        return [("eager", "float32")]
    ways = [(PUBLISHED, "float32")] if PUBLISHED in backends else []  # first: the others' ratios need it
    for backend in backends:
        if backend != PUBLISHED:
            ways += [(backend, each) for each in precisions if each in BACKENDS[backend]]
    return ways


def _stages(
    model: nn.Module, images: Tensor, backend: str, precision: str, device: torch.device, repeats: int, seconds: float
) -> Iterator[dict[str, Any]]:
    """The rows of one way to run: network (float input to logits) and end to end (uint8 image to class ids)."""
    preprocess = getattr(model, "preprocess", lambda batch: batch.to(device).float() / 255)
    x = preprocess(images)
    run, difference = _runner(model, x, backend, precision)
    stages = {"network": lambda: run(x), "end to end": lambda: class_ids(run(preprocess(images))).cpu()}
    for stage, call in stages.items():
        _reset_peak(device)
        with torch.inference_mode():
            timing = time_calls(call, device, repeats=repeats, seconds=seconds)
        yield {
            "stage": stage,
            "p50_ms": round(1e3 * timing.p50, 3),
            "p90_ms": round(1e3 * timing.p90, 3),
            "fps": round(len(images) / timing.p50, 2),
            "spread": round(timing.spread, 4),
            "repeats": repeats,
            "calls": sum(map(len, timing.repeats)),
            "peak_mb": _peak_mb(device),
            "max_difference": difference,
        }


def _runner(
    model: nn.Module, x: Tensor, backend: str, precision: str
) -> tuple[Callable[[Tensor], Tensor] | OptimizedModel, float | None]:
    if not hasattr(model, "pyramid"):  # torchvision's
        return (lambda batch: model(batch)["out"]), None
    if backend == PUBLISHED:
        return (lambda batch: model(batch, aux=True)[0]), None
    fast = optimize_for_inference(model, x, backend, precision=precision, verbose=False)
    return fast, fast.max_difference


def _network(name: str, revision: str, num_classes: int) -> nn.Module:
    if name in BASELINES:
        return torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=num_classes)
    return build_model(name, revision=revision, num_classes=num_classes)


def _warm_up(call: Callable[[], Any], stopwatch: Callable[[Callable[[], Any]], float]) -> None:
    """Calls until two successive medians agree: caches, clocks and allocators have settled by then."""
    end = time.perf_counter() + WARMUP_SECONDS
    before = statistics.median(stopwatch(call) for _ in range(WARMUP_CALLS))
    while time.perf_counter() < end:
        now = statistics.median(stopwatch(call) for _ in range(WARMUP_CALLS))
        if abs(now - before) <= STABLE * before:
            return
        before = now


def _cpu_seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _cuda_seconds(call: Callable[[], Any]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3  # events count milliseconds


def session(device: torch.device) -> dict[str, Any]:
    """What all rows of one call share: the machine and the software."""
    environment = runs.environment()
    gpu = environment["gpus"][device.index or 0] if device.type == "cuda" else ""
    return {
        "device": gpu or f"{environment['cpu']}, {environment['threads']} threads",
        "torch": environment["torch"],
        "git_sha": environment["git_sha"],
        "time": environment["time"],
    }


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the highest resident size so far
    except OSError:
        return


def _peak_mb(device: torch.device) -> float | None:
    """Highest memory since `_reset_peak`: torch's on CUDA, the process's resident size on Linux; None elsewhere."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    kilobytes = next((line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")), None)
    return round(int(kilobytes) / 1e3, 1) if kilobytes else None
