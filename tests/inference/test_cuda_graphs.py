"""Recording and replaying, with a stand-in for the recorder where there is no GPU."""

import contextlib

import pytest
import torch

from s2fpn_lib.inference.optimize import WARMUP_CALLS, CudaGraphs


class Stream:
    def wait_stream(self, other):
        assert isinstance(other, Stream)


class Graph:
    """Remembers what ran while it recorded, and runs that again in place."""

    recording: "Graph | None" = None

    def replay(self):
        self.result.copy_(self.work())


@contextlib.contextmanager
def record(graph):
    Graph.recording = graph
    yield
    Graph.recording = None


@pytest.fixture
def recorder(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", record)


class Doubled:
    def __init__(self):
        self.calls = 0

    def __call__(self, x):
        self.calls += 1
        result = 2 * x
        if Graph.recording is not None:
            Graph.recording.work, Graph.recording.result = (lambda: 2 * x), result
        return result


def test_a_shape_is_recorded_once_and_replayed(recorder):
    run = Doubled()
    graphs = CudaGraphs(run)
    first, second = torch.ones(2, 3), torch.full((2, 3), 5.0)
    kept = graphs(first)
    assert torch.equal(graphs(second), 2 * second)
    assert torch.equal(kept, 2 * first), "a later replay must not change a result that was handed out"
    assert run.calls == WARMUP_CALLS + 1
    assert torch.equal(first, torch.ones(2, 3))


def test_another_shape_is_another_recording(recorder):
    run = Doubled()
    graphs = CudaGraphs(run)
    for size in (2, 3, 2):
        assert torch.equal(graphs(torch.ones(size)), torch.full((size,), 2.0))
    assert len(graphs.graphs) == 2
    assert run.calls == 2 * (WARMUP_CALLS + 1)


@pytest.mark.cuda
def test_on_a_gpu():
    graphs = CudaGraphs(lambda x: x.relu() + 1)
    for seed in range(3):
        x = torch.randn(4, 5, generator=torch.Generator().manual_seed(seed)).cuda()
        assert torch.equal(graphs(x), x.relu() + 1)
