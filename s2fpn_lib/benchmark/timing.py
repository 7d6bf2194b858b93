"""The stopwatch: warmed up until stable, repeated, and several calls in turns, so that ratios share the weather."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

# MERGED gpu_state: """What a GPU's speed depends on besides its name: driver, clocks, power limit, as nvidia-smi states them."""


STABLE = 0.05  # warm-up ends when two successive medians agree within this share
WARMUP_CALLS = 3  # in each of these medians, fewer where a call takes a second
WARMUP_SECONDS = 5.0  # at most, after the first call

Call = Callable[[], Any]


@dataclass(frozen=True)
class Timing:
    """Seconds a call took: one list a repeat."""

    repeats: tuple[tuple[float, ...], ...]

    @property
    def medians(self) -> list[float]:
        """The median of each repeat."""
        return [statistics.median(calls) for calls in self.repeats]

    @property
    def p50(self) -> float:
        """Median of the repeats' medians."""
        return statistics.median(self.medians)

    @property
    def p90(self) -> float:
        """Nine of ten calls of all repeats took at most this long."""
        calls = sorted(seconds for repeat in self.repeats for seconds in repeat)
        return calls[min(len(calls) - 1, int(0.9 * len(calls)))]

    @property
    def evenly_spaced(self) -> float:
        """(slowest - fastest) of the repeats' medians, as a share of p50."""
        return (max(self.medians) - min(self.medians)) / self.p50

    def averaged(self) -> Timing:
        """The mean call of each repeat: for what comes in bursts, such as batches that were made ahead."""
        return Timing(tuple((statistics.fmean(calls),) for calls in self.repeats))

    def row(self) -> dict[str, Any]:
        """The columns that every speed table has."""
        return {
            "p50_ms": round(1e3 * self.p50, 3),
            "p90_ms": round(1e3 * self.p90, 3),
            "spread": round(self.evenly_spaced, 4),
            "repeats": len(self.repeats),
            "calls": sum(map(len, self.repeats)),
        }


def ratio_row(baseline: Timing | None, timing: Timing) -> dict[str, float | None]:
    """How many times as fast as `baseline`: the ratio of the medians, and the lowest and highest of the repeats'.

    Repeat i of both ran next to each other (`time_in_turns`). Without a baseline all three are None.
    """
    if baseline is None:
        return {"ratio": None, "ratio_low": None, "ratio_high": None}
    ratios = [slow / fast for slow, fast in zip(baseline.medians, timing.medians, strict=True)]
    return {
        "ratio": round(baseline.p50 / timing.p50, 3),
        "ratio_low": round(min(ratios), 3),
        "ratio_high": round(max(ratios), 3),
    }


def time_calls(call: Call, device: torch.device, **options: Any) -> Timing:
    """Times one call; the options are those of `time_in_turns`."""
    return time_in_turns({"": call}, device, **options)[""]


def time_in_turns(
    calls: Mapping[str, Call], device: torch.device, *, repeats: int = 3, seconds: float = 1.0, least: int = 5
) -> dict[str, Timing]:
    """Times several calls: each is warmed up until stable, then every repeat goes through all of them.

    A repeat of a call lasts at least `least` calls and `seconds` seconds. On CUDA each call is timed by events on its
    stream and waits for the second one; elsewhere by the clock.
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
    """Calls until two successive medians agree: caches, clocks and allocators have settled by then."""
    stopwatch(call)  # the first one compiles, allocates and pages in
    end = time.perf_counter() + WARMUP_SECONDS
    before = _median(call, stopwatch)
    while time.perf_counter() < end:
        now = _median(call, stopwatch)
        if abs(now - before) <= STABLE * before:
            return
        before = now


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


# nvidia-smi's name of a property -> its column
QUERY = {
    "driver_version": "driver",
    "clocks.sm": "sm_mhz",
    "clocks.max.sm": "sm_max_mhz",
    "clocks.mem": "memory_mhz",
    "power.limit": "power_limit_w",
    "persistence_mode": "persistence",
}


def gpu_state(index: int = 0, run: Callable[[list[str]], str] | None = None) -> dict[str, Any]:
    """The columns of `QUERY` for GPU `index`, text as nvidia-smi prints it; empty where there is no nvidia-smi.

    Ask while the GPU is warm from the measurement: idle clocks say nothing. run: runs a command and gives its output.
    """
    command = ["nvidia-smi", f"--id={index}", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits"]
    try:
        output = (run or _output)(command)
    except (OSError, subprocess.SubprocessError):
        return {}
    values = [value.strip() for value in output.strip().split(",")]
    return dict(zip(QUERY.values(), values, strict=True))


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
