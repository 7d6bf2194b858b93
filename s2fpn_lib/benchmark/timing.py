"""Timing of calls: warm-up until the times are stable, repeats with their spread, several calls in turns.

Calls that take turns see the same clocks and the same load of the machine, so that their ratios are reliable.
`torch.utils.benchmark` times one call at a time, with a fixed warm-up.
"""

import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch

STABLE = 0.05  # warm-up ends when two successive medians differ by less than this share
WARMUP_CALLS = 3  # per median; fewer where a call takes a second
WARMUP_SECONDS = 5.0  # longest warm-up after the first call
GPU_PROPERTIES = ["driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit", "persistence_mode"]

Call = Callable[[], Any]


@dataclass(frozen=True)
class Timing:
    """Seconds per call: one tuple per repeat."""

    repeats: tuple[tuple[float, ...], ...]

    @property
    def medians(self) -> list[float]:
        """The median of each repeat."""
        return [statistics.median(calls) for calls in self.repeats]

    @property
    def p50(self) -> float:
        """Median of the repeats' medians."""
        return statistics.median(self.medians)

    def averaged(self) -> Self:
        """The mean call of each repeat, for times that come in bursts, such as those of prefetched batches."""
        return Timing(tuple((statistics.fmean(calls),) for calls in self.repeats))

    def row(self) -> dict[str, Any]:
        """The columns of all speed tables: p90_ms is of all calls, spread (slowest - fastest median) / p50."""
        calls = np.concatenate(self.repeats)
        return {
            "p50_ms": round(1e3 * self.p50, 3),
            "p90_ms": round(1e3 * float(np.quantile(calls, 0.9, method="higher")), 3),
            "spread": round((max(self.medians) - min(self.medians)) / self.p50, 4),
            "repeats": len(self.repeats),
            "calls": len(calls),
        }

    def ratio_row(self, baseline: Self | None) -> dict[str, float | None]:
        """How many times as fast as `baseline`: the ratio of the medians, and the lowest and highest of the repeats.

        Without a baseline all three are None.
        """
        if baseline is None:
            return dict.fromkeys(("ratio", "ratio_low", "ratio_high"))
        ratios = [slow / fast for slow, fast in zip(baseline.medians, self.medians, strict=True)]
        found = {"ratio": baseline.p50 / self.p50, "ratio_low": min(ratios), "ratio_high": max(ratios)}
        return {column: round(ratio, 3) for column, ratio in found.items()}


def time_in_turns(
    calls: Mapping[str, Call], device: torch.device, *, repeats: int = 3, seconds: float = 1.0, least: int = 5
) -> dict[str, Timing]:
    """Times several calls: each is warmed up until its times are stable, then each repeat runs all of them.

    A repeat of a call has at least `least` calls and lasts at least `seconds` seconds. On CUDA a call is timed with
    events on its stream, elsewhere with the clock.
    """
    stopwatch = _cuda_seconds if device.type == "cuda" else _cpu_seconds
    for call in calls.values():
        _warm_up(call, stopwatch)
    measured: dict[str, list[tuple[float, ...]]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            times: list[float] = []
            end = time.perf_counter() + seconds
            while len(times) < least or time.perf_counter() < end:
                times.append(stopwatch(call))
            measured[name].append(tuple(times))
    return {name: Timing(tuple(rows)) for name, rows in measured.items()}


def _warm_up(call: Call, stopwatch: Callable[[Call], float]) -> None:
    """Calls until two successive medians agree, when caches, clocks, and allocators are stable."""
    stopwatch(call)  # the first call compiles, allocates, and loads pages
    end = time.perf_counter() + WARMUP_SECONDS
    before = now = _median(call, stopwatch)
    while time.perf_counter() < end:
        before, now = now, _median(call, stopwatch)
        if abs(now - before) <= STABLE * before:
            return


def _median(call: Call, stopwatch: Callable[[Call], float]) -> float:
    times = [stopwatch(call)]
    while len(times) < WARMUP_CALLS and sum(times) < 1:
        times.append(stopwatch(call))
    return statistics.median(times)


def _cpu_seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _cuda_seconds(call: Call) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3  # events count milliseconds


def gpu_state(index: int = 0) -> dict[str, str]:
    """Driver, clocks, and power limit of GPU `index` as nvidia-smi prints them; empty without nvidia-smi.

    Call it directly after the measurement: the clocks of an idle GPU are lower.
    """
    command = ["nvidia-smi", f"--id={index}", f"--query-gpu={','.join(GPU_PROPERTIES)}", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(GPU_PROPERTIES, map(str.strip, output.split(",")), strict=True))
