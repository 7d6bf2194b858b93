"""The network made ready to run: batch norms folded, auxiliary heads gone, and one of three backends.

    fast = optimize_for_inference(model, example, backend="compile")
    logits = fast(fast.preprocess(images))

Every change is exact in real arithmetic; what rounding makes of it is measured on the example and kept as
`max_difference`. bfloat16 is the exception, which is why it has to be asked for.
"""

from __future__ import annotations

import copy
import io
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from s2fpn_lib.model import S2FPN
from s2fpn_lib.model.gfu import GFUv1

BACKENDS = ("eager", "compile", "onnxruntime")
PRECISIONS = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
TOLERANCE = 1e-3  # of float32 logits, the promise of optimize_for_inference


class OptimizedModel:
    """A network that only predicts: `fast(x)` gives the logits (B, K, H, W) that `model(x)` gave.

    Attributes:
        backend, precision: as asked for.
        max_difference: largest |difference| of its logits to the original's, on the example.
        config, num_classes: of the original.
    """

    def __init__(self, model: S2FPN, run: Callable[[Tensor], Tensor], backend: str, precision: str):
        self.config, self.num_classes = model.config, model.num_classes
        self.backend, self.precision = backend, precision
        self.max_difference = float("nan")
        self._preprocess, self._run = model.preprocess, run

    def __repr__(self) -> str:
        name = f"{self.config['name']} {self.config['revision']}"
        return f"OptimizedModel({name}, {self.backend}, {self.precision}, differs by {self.max_difference:.1e})"

    def preprocess(self, images: Tensor) -> Tensor:
        """As the original's: uint8 RGB (B, 3, H, W) -> the float32 input."""
        return self._preprocess(images)

    def __call__(self, x: Tensor) -> Tensor:
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
            CPU); "onnxruntime" needs the extra [onnx] and runs on the CPU.
        precision: "float32"; "bf16" or "fp16" run convolutions in half precision, with a difference that
            `max_difference` states and nothing bounds.
        verbose: print the largest difference.

    Raises:
        ValueError: unknown backend or precision, or one that the device lacks.
        ImportError: the backend's package is missing; the message names the extra.
        RuntimeError: the float32 result differs from the model's by more than `TOLERANCE` (relative to the largest
            logit where that is above 1): the network is not used as it is.
    """
    if not isinstance(model, S2FPN):
        raise TypeError(f"optimize_for_inference takes a model made by build_model, got {type(model).__name__}")
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; choose one of {', '.join(BACKENDS)}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; choose one of {', '.join(PRECISIONS)}")
    device = next(model.parameters()).device
    if backend == "onnxruntime" and (device.type != "cpu" or precision != "float32"):
        raise ValueError(f"backend 'onnxruntime' runs float32 on the CPU here, not {precision} on {device}")
    network = simplify(model)
    if backend == "onnxruntime":
        run = _onnxruntime(network, example)
    else:
        run = _torch_runner(network, PRECISIONS[precision], compiled=backend == "compile")
        if device.type == "cuda":
            run = _CudaGraphs(run)
    optimized = OptimizedModel(model, run, backend, precision)
    optimized.max_difference = _check(model, optimized, example)
    if verbose:
        print(f"{optimized}: largest difference of a logit on {tuple(example.shape)}")
    return optimized


def simplify(model: S2FPN) -> S2FPN:
    """A copy in evaluation mode with batch norms folded into convolutions, no auxiliary heads, GFU's 1x1 convolution
    before its resize (they commute: bilinear weights sum to 1 and the convolution has no bias), in channels_last."""
    simple = copy.deepcopy(model).eval().requires_grad_(False)
    simple.auxiliary = nn.ModuleList()
    fold_batch_norms(simple)
    for module in simple.modules():
        if isinstance(module, GFUv1):
            module.reduce_first = True
    return simple.to(memory_format=torch.channels_last)


def fold_batch_norms(module: nn.Module) -> int:
    """Folds each batch norm that directly follows a convolution into it, in place; how many were folded.

    conv: W' = W g / sqrt(v + eps), b' = beta - m g / sqrt(v + eps). Neighbours are consecutive entries of a
    Sequential, and torchvision's conv<i>, bn<i>. Strip attention's shared convolution has two norms and keeps both.
    """
    folded = 0
    for parent in module.modules():
        children = dict(parent.named_children())
        if isinstance(parent, nn.Sequential):
            names = list(children)
            pairs = list(itertools.pairwise(names))
        else:
            pairs = [(f"conv{i}", f"bn{i}") for i in (1, 2, 3)]
        for conv_name, norm_name in pairs:
            conv, norm = children.get(conv_name), children.get(norm_name)
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(parent, norm_name, nn.Identity())
                folded += 1
    return folded


def _torch_runner(network: S2FPN, dtype: torch.dtype | None, *, compiled: bool) -> Callable[[Tensor], Tensor]:
    device = next(network.parameters()).device
    if compiled:
        network = torch.compile(network, dynamic=False, options=_inductor_options(device))

    def run(x: Tensor) -> Tensor:
        x = x.to(memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            return network(x).float()

    return run


def _inductor_options(device: torch.device) -> dict[str, bool]:
    # Freezing turns weights into constants: on the CPU they are packed for oneDNN once, with the activation fused
    return {"freezing": True} if device.type == "cpu" else {"max_autotune": False}


class _CudaGraphs:
    """Records `run` once for every input shape and replays it: a small network is bound by kernel launches."""

    def __init__(self, run: Callable[[Tensor], Tensor]):
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
            for _ in range(3):  # allocations and autotuning happen before the recording
                self.run(source)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = self.run(source)
        return graph, source, result


def _onnxruntime(network: S2FPN, example: Tensor) -> Callable[[Tensor], Tensor]:
    """One session an input size: with a size that it knows onnxruntime plans its memory and layouts better."""
    from s2fpn_lib.export import export_onnx, onnx_session

    sessions: dict[torch.Size, Any] = {}

    def run(x: Tensor) -> Tensor:
        if x.shape not in sessions:
            file = io.BytesIO()
            export_onnx(network, file, x, dynamic=False)
            sessions[x.shape] = onnx_session(file.getvalue(), threads=torch.get_num_threads())
        (logits,) = sessions[x.shape].run(None, {"image": x.contiguous().numpy()})
        return torch.from_numpy(logits)

    run(example)
    return run


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
