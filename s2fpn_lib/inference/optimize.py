"""The network made ready to run: batch norms folded, auxiliary heads gone, and one of four backends.

    fast = optimize_for_inference(model, example, backend="compile")
    logits = fast(fast.preprocess(images))

Every change is exact in real arithmetic; what rounding makes of it is measured on the example and kept as
`max_difference`. Precisions below float32 are the exception, which is why they have to be asked for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from s2fpn_lib.distributed import AMP_DTYPES
from s2fpn_lib.inference.runtimes import RUNTIMES, runtime_runner
from s2fpn_lib.inference.simplify import simplify
from s2fpn_lib.model import S2FPN

# MERGED cuda_graphs: """CUDA graphs: a function recorded once for every input shape and replayed, which spares all kernel launches."""


TORCH_PRECISIONS = {"float32": None, **AMP_DTYPES}
BACKENDS = {"eager": tuple(TORCH_PRECISIONS), "compile": tuple(TORCH_PRECISIONS), **RUNTIMES}  # and their precisions
PRECISIONS = (*TORCH_PRECISIONS, "int8")
TOLERANCE = 1e-3  # of float32 logits, the promise of optimize_for_inference


class OptimizedModel(nn.Module):
    """A network that only predicts: `fast(x)` gives the logits (B, K, H, W) that `model(x)` gave.

    Attributes:
        backend, precision: as asked for.
        device: the original's, where inputs have to be.
        max_difference: largest |difference| of its logits to the original's, on the example.
        config, num_classes: of the original.
    """

    def __init__(self, model: S2FPN, run: Callable[[Tensor], Tensor], backend: str, precision: str):
        super().__init__()
        self.config, self.num_classes = model.config, model.num_classes
        self.device = next(model.parameters()).device
        self.backend, self.precision = backend, precision
        self.max_difference = float("nan")
        self._preprocess, self._run = model.preprocess, run

    def __repr__(self) -> str:
        name = f"{self.config['name']} {self.config['revision']}"
        return f"OptimizedModel({name}, {self.backend}, {self.precision}, differs by {self.max_difference:.1e})"

    def preprocess(self, images: Tensor) -> Tensor:
        """As the original's: uint8 RGB (B, 3, H, W) -> the float32 input."""
        return self._preprocess(images)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K, H, W), float32. Any size works; a size seen for the first time may compile first."""
        with torch.inference_mode():
            return self._run(x)


def optimize_for_inference(
    model: S2FPN, example: Tensor, backend: str = "eager", *, precision: str = "float32", verbose: bool = True
) -> OptimizedModel:
    """A callable with `model`'s logits, faster. `model` itself is left as it was.

    Args:
        model: made by `build_model`, on the device where it shall run.
        example: (B, 3, H, W) float input as it will come, from `model.preprocess`; the check is made on it.
        backend: "eager" needs nothing; "compile" takes a minute once for every input size (and a C++ compiler on a
            CPU); "onnxruntime" needs the extra [onnx], "openvino" the extra [openvino], and both run on the CPU.
        precision: "float32"; "bf16" or "fp16" run convolutions in half precision; "int8" (onnxruntime, openvino)
            quantizes with the ranges of activations that `example` gives, which should then be a few real images.
            Below float32 the difference is stated by `max_difference` and bounded by nothing.
        verbose: print the largest difference.

    Raises:
        ValueError: unknown backend or precision, or one that the device lacks.
        ImportError: the backend's package is missing; the message names the extra.
        RuntimeError: the float32 result differs from the model's by more than `TOLERANCE` (relative to the largest
            logit where that is above 1): the network is not used as it is.
    """
    if not isinstance(model, S2FPN):
        raise TypeError(f"optimize_for_inference takes a model made by build_model, got {type(model).__name__}")
    device = next(model.parameters()).device
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; choose one of {', '.join(BACKENDS)}")
    if precision not in BACKENDS[backend]:
        raise ValueError(f"precision is {precision!r}; backend {backend!r} has {', '.join(BACKENDS[backend])}")
    if backend in RUNTIMES and device.type != "cpu":
        raise ValueError(f"backend {backend!r} runs on the CPU here, and the model is on {device}")
    network = simplify(model)
    if backend in RUNTIMES:
        run = runtime_runner(network, example, backend, precision)
    else:
        run = _torch_runner(network, TORCH_PRECISIONS[precision], compiled=backend == "compile")
        if device.type == "cuda":
            run = CudaGraphs(run)
    optimized = OptimizedModel(model, run, backend, precision)
    optimized.max_difference = _check(model, optimized, example)
    if verbose:
        print(f"{optimized}: largest difference of a logit on {tuple(example.shape)}")
    return optimized


def _torch_runner(network: S2FPN, dtype: torch.dtype | None, *, compiled: bool) -> Callable[[Tensor], Tensor]:
    device = next(network.parameters()).device
    if compiled:
        network = torch.compile(network, dynamic=False)

    def run(x: Tensor) -> Tensor:
        x = x.to(memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype, enabled=dtype is not None), _frozen(compiled):
            return network(x).float()

    return run


def _frozen(compiled: bool) -> contextlib.AbstractContextManager:
    """Weights become constants of the compiled graph: on the CPU they are packed for oneDNN once, with the activation
    fused. Set around the call, as tracing has to see it: an option of torch.compile reaches only what comes after."""
    if not compiled:
        return contextlib.nullcontext()
    from torch._inductor import config  # seconds to import

    return config.patch(freezing=True)


def _check(model: S2FPN, optimized: OptimizedModel, example: Tensor) -> float:
    training = model.training
    with torch.inference_mode():
        expected = model.eval()(example).float()
    model.train(training)
    result = optimized(example)
    difference = float((result - expected).abs().max())
    if optimized.precision == "float32" and difference > TOLERANCE * max(1.0, float(expected.abs().max())):
        raise RuntimeError(
            f"{optimized.backend} gives other logits than the model (largest difference {difference:.1e}): "
            "please report this with the model's config and the input size"
        )
    return difference


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
