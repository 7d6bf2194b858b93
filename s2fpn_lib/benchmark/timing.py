"""Timing of calls: warm-up until the times are stable, repeats with their spread, several calls in turns.

Calls that take turns see the same clocks and the same load of the machine, so that their ratios are reliable.
`torch.utils.benchmark` times one call at a time, with a fixed warm-up.
"""

import hashlib
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch

STABLE = 0.05  # warm-up ends when two successive medians differ by less than this share
WARMUP_CALLS = 3  # per median; fewer where a call takes a second
SETTLE_SECONDS = 0.05  # onnxruntime's threads wait actively after a call, and would slow the next way
WARMUP_SECONDS = 5.0  # longest warm-up after the first call
GPU_PROPERTIES = ["driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit", "persistence_mode"]

Call = Callable[[], Any]


@dataclass(frozen=True)
class Timing:
    """Seconds per call: one tuple per repeat. parts: what each call returned, if that was a number of seconds.
    cpu_share: the mean over the repeats of `cpu_share`, None if it is not known."""

    repeats: tuple[tuple[float, ...], ...]
    parts: tuple[tuple[float, ...], ...] = ()
    cpu_share: float | None = None

    def of_parts(self) -> Self:
        """The timing of the part of each call that the call itself measured. No quantile is above the whole call's."""
        return Timing(self.parts, cpu_share=self.cpu_share)

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
        return Timing(tuple((statistics.fmean(calls),) for calls in self.repeats), cpu_share=self.cpu_share)

    def row(self) -> dict[str, Any]:
        """The columns of all speed tables: p90_ms is of all calls, spread (slowest - fastest median) / p50."""
        calls = np.concatenate(self.repeats)
        return {
            "p50_ms": round(1e3 * self.p50, 3),
            "p90_ms": round(1e3 * float(np.quantile(calls, 0.9, method="higher")), 3),
            "spread": round((max(self.medians) - min(self.medians)) / self.p50, 4),
            "repeats": len(self.repeats),
            "calls": len(calls),
            "cpu_share": self.cpu_share,
        }

    def ratio_row(self, baseline: Self | None) -> dict[str, float | None]:
        """How many times as fast as `baseline`: ratio of the medians, and of the repeats; None without a baseline."""
        if baseline is None:
            return dict.fromkeys(("ratio", "ratio_low", "ratio_high"))
        ratios = [slow / fast for slow, fast in zip(baseline.medians, self.medians, strict=True)]
        found = {"ratio": baseline.p50 / self.p50, "ratio_low": min(ratios), "ratio_high": max(ratios)}
        return {column: round(ratio, 3) for column, ratio in found.items()}


def time_in_turns(
    calls: Mapping[str, Call],
    device: torch.device,
    *,
    repeats: int = 3,
    seconds: float = 1.0,
    least: int = 5,
    warmup: float = WARMUP_SECONDS,
) -> dict[str, Timing]:
    """Times several calls: each is warmed up until its times are stable, then each repeat runs all of them.

    A repeat of a call has at least `least` calls and lasts at least `seconds` seconds. `warmup` is the longest warm-up
    after the first call in seconds. Before each repeat, `cpu_share` is measured.
    """
    for call in calls.values():
        _warm_up(call, device, warmup)
    measured: dict[str, list[tuple[Any, ...]]] = {name: [] for name in calls}  # times, parts, and share of each repeat
    for _ in range(repeats):
        for name, call in calls.items():
            time.sleep(SETTLE_SECONDS)
            share = cpu_share(1 if device.type == "cuda" else torch.get_num_threads())
            times: list[tuple[float, float]] = []
            end = time.perf_counter() + seconds
            while len(times) < least or time.perf_counter() < end:
                taken, returned = timed_call(call, device)
                times.append((taken, returned if isinstance(returned, float) else 0.0))
            measured[name].append((*zip(*times, strict=True), share))
    timings = {}
    for name, rounds in measured.items():
        whole, parts, shares = zip(*rounds, strict=True)
        timings[name] = Timing(whole, parts, round(statistics.fmean(shares), 3))
    return timings


def cpu_share(threads: int) -> float:
    """The share of `threads` cores that this process gets at this moment, 1 on a machine with nothing else to do.

    Each thread computes for some 20 milliseconds without waiting: where its CPU time is less than the clock's, another
    process had the core. A load average counts this process's own threads, too.
    """
    together, block = threading.Barrier(threads), bytes(2**25)

    def compute(_: int) -> float:
        hashlib.sha256(block)  # until the scheduler has given each thread a core of its own
        together.wait()
        wall, cpu = time.perf_counter(), time.thread_time()
        hashlib.sha256(block)  # without the interpreter's lock
        return (time.thread_time() - cpu) / (time.perf_counter() - wall)

    with ThreadPoolExecutor(threads) as pool:
        return min(1.0, statistics.fmean(pool.map(compute, range(threads))))


def _warm_up(call: Call, device: torch.device, longest: float) -> None:
    """Calls until two successive medians agree, when caches, clocks, and allocators are stable."""
    timed_call(call, device)  # the first call compiles, allocates, and loads pages
    end, medians = time.perf_counter() + longest, []
    while len(medians) < 2 or abs(medians[-1] - medians[-2]) > STABLE * medians[-2]:
        if medians and time.perf_counter() >= end:
            return
        times = [timed_call(call, device)[0]]
        while len(times) < WARMUP_CALLS and sum(times) < 1:
            times.append(timed_call(call, device)[0])
        medians.append(statistics.median(times))


def timed_call(call: Call, device: torch.device) -> tuple[float, Any]:
    """The seconds that a call took, by events on the stream on CUDA, elsewhere by the clock, and what it returned."""
    if device.type != "cuda":
        start = time.perf_counter()
        returned = call()
        return time.perf_counter() - start, returned
    begun, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begun.record()
    returned = call()
    ended.record()
    ended.synchronize()
    return begun.elapsed_time(ended) / 1e3, returned  # events count milliseconds


def gpu_state(index: int = 0) -> dict[str, str]:
    """Driver, clocks, and power limit of a GPU, {} without nvidia-smi. An idle GPU soon has lower clocks."""
    command = ["nvidia-smi", f"--id={index}", f"--query-gpu={','.join(GPU_PROPERTIES)}", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(GPU_PROPERTIES, map(str.strip, output.split(",")), strict=True))
