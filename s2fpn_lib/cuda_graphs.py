"""CUDA graphs: a function recorded once for every input shape and replayed, which spares all kernel launches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

WARMUP_CALLS = 3  # allocations, autotuning and compilation have to happen before a recording


class CudaGraphs:
    """`run`, a function from a CUDA tensor to a CUDA tensor without host syncs, as replayed graphs.

    Each input is copied into the recorded input's memory, and each result out of the recorded result's, so that a
    caller may keep it.
    """

    def __init__(self, run: Callable[[Tensor], Tensor]) -> None:
        self.run = run
        self.graphs: dict[torch.Size, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}

    def __call__(self, x: Tensor) -> Tensor:
        if x.shape not in self.graphs:
            self.graphs[x.shape] = self._record(x)
        graph, source, result = self.graphs[x.shape]
        source.copy_(x)
        graph.replay()
        return result.clone()

    def _record(self, x: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        source = x.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARMUP_CALLS):
                self.run(source)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = self.run(source)
        return graph, source, result
