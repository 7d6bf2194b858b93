"""Arithmetic and logic of the timing. No test asserts a time."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from s2fpn_lib.benchmark import timing as module
from s2fpn_lib.benchmark.timing import Timing, time_in_turns

CPU = torch.device("cpu")


def timed(device=CPU, **options):
    return time_in_turns({"call": lambda: None}, device, **options)["call"]


def test_percentiles_and_spread():
    timing = Timing(((1.0, 2.0, 9.0), (2.0, 3.0, 4.0), (4.0, 4.0, 5.0)))
    assert timing.p50 == 3.0
    assert timing.row() == {"p50_ms": 3e3, "p90_ms": 9e3, "spread": 0.6667, "repeats": 3, "calls": 9, "cpu_share": None}


def test_ratios_of_the_repeats():
    slow, fast = Timing(((4.0,), (6.0,), (9.0,))), Timing(((2.0,), (2.0,), (3.0,)))
    assert fast.ratio_row(slow) == {"ratio": 3.0, "ratio_low": 2.0, "ratio_high": 3.0}
    assert set(fast.ratio_row(None).values()) == {None}


def test_bursts_are_compared_by_their_mean():
    bursts = Timing(((0.5, 0.5, 5.0), (1.0, 1.0, 7.0))).averaged()
    assert bursts.repeats == ((2.0,), (3.0,))
    assert bursts.ratio_row(Timing(((8.0, 4.0), (9.0, 9.0))).averaged())["ratio"] == 3.0


def test_warm_up_lasts_until_two_medians_agree(monkeypatch):
    # One call, then 3 calls per median: 0.3, 0.2, 0.2 -> three medians; then the measured calls
    durations = itertools.chain([9], [0.3] * 3, [0.2] * 6, itertools.repeat(0.7))
    taken = []

    def clock(*_):
        taken.append(next(durations))
        return taken[-1], None

    monkeypatch.setattr(module, "timed_call", clock)
    timing = timed(repeats=2, seconds=0, least=4)
    assert timing.repeats == ((0.7,) * 4,) * 2
    assert len(taken) == 1 + 9 + 8


def test_a_slow_call_is_warmed_up_by_single_calls(monkeypatch):
    taken = []
    monkeypatch.setattr(module, "timed_call", lambda *_: (taken.append(2.0) or 2.0, None))
    timed(repeats=1, seconds=0, least=1)
    assert len(taken) == 1 + 2 + 1


def test_warm_up_of_unstable_calls_ends(monkeypatch):
    durations = itertools.cycle([1, 1, 1, 2, 2, 2])
    monkeypatch.setattr(module, "timed_call", lambda *_: (next(durations), None))
    assert len(timed(repeats=1, seconds=0, least=2, warmup=0.0).repeats[0]) == 2


def test_what_a_call_returns_is_a_part_of_its_time(monkeypatch):
    parts = iter([0.1] * 7 + [0.2, 0.3, 0.4, 0.5])  # 1 + 2 * 3 calls warm up
    monkeypatch.setattr(module, "timed_call", lambda call, _: (0.25, call()))
    monkeypatch.setattr(module, "cpu_share", lambda threads: 0.5)
    timing = time_in_turns({"call": lambda: next(parts)}, CPU, repeats=2, seconds=0, least=2)["call"]
    assert timing.repeats == ((0.25, 0.25), (0.25, 0.25))
    assert timing.of_parts().repeats == ((0.2, 0.3), (0.4, 0.5))
    assert timing.of_parts().row()["cpu_share"] == timing.row()["cpu_share"] == 0.5


def test_the_cpu_share_is_cpu_time_over_the_clocks(monkeypatch):
    clock, cpu = (itertools.count(0, step) for step in (5, 4))
    names = {"perf_counter": lambda: next(clock), "thread_time": lambda: next(cpu)}
    monkeypatch.setattr(module, "time", SimpleNamespace(**names))
    monkeypatch.setattr(module.hashlib, "sha256", lambda block: None)
    assert module.cpu_share(1) == 0.8


def test_repeats_take_turns(monkeypatch):
    monkeypatch.setattr(module, "_warm_up", lambda *_: None)
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    measured = time_in_turns(calls, CPU, repeats=3, seconds=0, least=2)
    assert order == ["a", "a", "b", "b"] * 3
    assert [len(timing.repeats) for timing in measured.values()] == [3, 3]


def test_on_cuda_events_are_timed(monkeypatch):
    class Event:
        clock = 0

        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            Event.clock += 4
            self.at = Event.clock

        def synchronize(self):
            self.waited = True

        def elapsed_time(self, other):
            assert other.waited
            return other.at - self.at  # milliseconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    timing = timed(torch.device("cuda"), repeats=1, seconds=0, least=2)
    assert timing.p50 == pytest.approx(4e-3)
