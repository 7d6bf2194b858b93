"""Ways to run a network, from the published one to compiled half precision, timed in turns on one device.

Tasks give rows for speed.jsonl, training.jsonl, and loader.jsonl in the format of 12_speed. Ratios of speed rows are to
the published way as PyTorch's defaults run it on a GPU: its convolutions multiply in TF32.
"""

import copy
import gc
import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from s2fpn_lib.benchmark.inference import NO_GRAD, PUBLISHED, Run, measure_rows, peak_mb, session, timed
from s2fpn_lib.benchmark.kernels import depthwise_ways, step_kernels
from s2fpn_lib.benchmark.published import PublishedInference
from s2fpn_lib.benchmark.timing import time_in_turns
from s2fpn_lib.benchmark.training import make_step, measure_loader
from s2fpn_lib.inference.export import export_onnx
from s2fpn_lib.inference.optimize import cuda_graphs
from s2fpn_lib.inference.simplify import simplify
from s2fpn_lib.model import S2FPN, build_model
from s2fpn_lib.model.blocks import REVISIONS
from s2fpn_lib.model.complexity import measure_complexity
from s2fpn_lib.model.modes import AMP_DTYPES, evaluation_mode
from s2fpn_lib.train import cudnn_search

Rows = Iterator[tuple[str, dict[str, Any]]]
Task = tuple[float, Callable[[], Rows]]  # about how many seconds it needs, and what gives its rows
Way = tuple[str, str]  # how it is run, precision
REFERENCE = (PUBLISHED, "tf32")
MODES = ("reduce-overhead", "max-autotune")  # of torch.compile
GRAPH = "CUDA graph"  # of the simplified network in channels_last
BEST: tuple[Way, ...] = ((GRAPH, "fp16"), ("channels_last", "fp16"))
OTHERS: tuple[Way, ...] = ((GRAPH, "bf16"), (GRAPH, "tf32"), ("channels_last", "bf16"), ("channels_last", "tf32"))
STEPWISE: tuple[Way, ...] = ((PUBLISHED, "float32"), (NO_GRAD, "tf32"), ("plain", "tf32"), ("simplified", "tf32"))
STEPWISE += (("plain", "float32"), (GRAPH, "float32"))
COMPILED: tuple[Way, ...] = (("reduce-overhead", "fp16"), ("compile", "fp16"), ("reduce-overhead", "tf32"))
TUNED: tuple[Way, ...] = (("max-autotune", "fp16"), ("max-autotune", "bf16"))
RUNTIMES: tuple[Way, ...] = (("TensorRT", "tf32"), ("TensorRT", "fp16"), ("onnxruntime CUDA", "tf32"))
SIZES = ((512, 1024), (360, 480), (1024, 2048))
NETWORKS = ("s2fpn18", "s2fpn_lite", "s2fpn34", "s2fpn34m")
COMPILED_STEPS = ("compiled", "compiled, CUDA graphs")


def tasks(device: torch.device, end: float, out: Path) -> dict[str, Task]:
    """All measurements, the most telling first.

    On a CPU the images have a fourth of the height and width, and there are no CUDA graphs and no fp16.
    """
    cuda = device.type == "cuda"
    best = BEST if cuda else (*BEST, OTHERS[3])
    sizes = [(height, width) if cuda else (height // 4, width // 4) for height, width in SIZES]
    watch = {"repeats": 3, "seconds": 0.1, "least": 5, "warmup": 1.0}
    found: dict[str, Task] = {}

    def add(needed: float, title: str, measure: Callable[..., Rows], *arguments: Any, **options: Any) -> None:
        found[title] = needed, partial(measure, *arguments, **options)

    def speed(name: str, ways: Sequence[Way], revision: str = "v1", size: int = 0, batch: int = 1) -> None:
        ways = [way for way in ways if cuda or (way[0] != GRAPH and way[1] != "fp16")]
        title = "{} {} {}x{} batch {}: ".format(name, revision, *sizes[size], batch) + ", ".join(map(" ".join, ways))
        needed = sum({"compile": 30, MODES[0]: 30, MODES[1]: 90}.get(backend, 1) for backend, _ in ways)
        if ways:
            add(needed, title, measure_ways, name, revision, sizes[size], batch, ways, device, **watch)

    def train(name: str, *ways: str, size: int = 1, batch: int = 8) -> None:
        title = "training {} {}x{} batch {}: published; ".format(name, *sizes[size], batch) + "; ".join(ways)
        needed = 1 + sum(60 if way in COMPILED_STEPS else 1 for way in ways)
        add(needed, title, measure_steps, name, sizes[size], batch, ("published", *ways), device, **watch)

    for name in NETWORKS[:2]:
        speed(name, best)
    train("s2fpn18", "modern")
    speed("s2fpn18", OTHERS)
    train("s2fpn_lite", "modern")
    for name in NETWORKS[:2]:
        add(10, f"kernels of a training step of {name}", step_kernels, name, sizes[1], 8, device)
    if cuda:
        add(40, "depthwise convolutions", depthwise_ways, 16, device, **watch)
    speed("s2fpn18", COMPILED[:1])
    speed("s2fpn18", best, batch=8)
    for name in NETWORKS[:2]:
        train(name, *COMPILED_STEPS[1:])
    product = {"backends": (PUBLISHED, "eager"), "precisions": ("float32", *AMP_DTYPES), "device": device, **watch}
    add(5, "product", rows_of, "speed", measure_rows, NETWORKS[:2], sizes[:1], **product)
    files = {"images": 32, "workers": (4, 14) if cuda else (1,), "repeats": 3, "seconds": 0.3, "least": 3}
    add(5, "loader", rows_of, "loader", measure_loader, "camvid", sizes[1], 8, **files)
    speed("s2fpn18", STEPWISE)
    train("s2fpn18", "same loss", "modern", size=0)
    speed("s2fpn_lite", COMPILED[:1])
    for batch in (1, 2, 16, 32):
        train("s2fpn18", "modern", batch=batch)
    for name in NETWORKS[:2]:
        train(name, "same loss", *COMPILED_STEPS[:1])
        for ways in (RUNTIMES, COMPILED[1:], TUNED[:1]):
            speed(name, ways)
    # every network, size, and batch size, first each one's best ways
    for ways, batches in (((*best, OTHERS[1]), (1, 8)), (STEPWISE, (1, 8)), (COMPILED[:1], (1,)), (TUNED, (1,))):
        for batch, size, name, revision in itertools.product(batches, range(len(SIZES)), NETWORKS, REVISIONS):
            speed(name, ways, revision, size, batch)
    return found


def rows_of(file: str, measure: Callable[..., Iterator[dict[str, Any]]], *arguments: Any, **options: Any) -> Rows:
    """The rows of another benchmark, for a file. "speed": of `optimize_for_inference`, alone and from uint8 to ids."""
    allow_tf32(True)
    for row in measure(*arguments, **options):
        yield f"{file}.jsonl", row


def allow_tf32(on: bool) -> None:
    """Whether float32 convolutions and matrix products may round their factors to TF32."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = on


def settled(model: S2FPN, size: tuple[int, int]) -> S2FPN:
    """Moves the running statistics of batch norm to those of a random batch, so that activations have a usual scale."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.5  # not 1: a channel that is 0 throughout would be divided by 0
    with torch.no_grad():
        model.train()(model.preprocess(torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)))
    return model.eval()


def measure_ways(
    name: str, revision: str, size: tuple[int, int], batch: int, ways: Sequence[Way], device: torch.device, **watch: Any
) -> Rows:
    """Rows of the stage "network": float input to float32 logits of the input's size, all `ways` in turns with the
    published ones. A way that fails has a row with its `error` and no time.
    """
    torch.backends.cudnn.benchmark = True  # as the published script sets it
    allow_tf32(False)
    torch.manual_seed(0)
    model = settled(build_model(name, revision=revision, num_classes=19).to(device), (128, 256))
    cost = measure_complexity(model, size)
    x = model.preprocess(torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8))
    with torch.inference_mode():
        expected = model(x)
    protocol = {"network": name, "revision": revision, "height": size[0], "width": size[1], "batch": batch}
    protocol |= {"parameters_m": round(cost.megaparameters, 3), "gmacs": round(batch * cost.gigamacs, 3)}
    calls: dict[Way, Callable[[], Tensor]] = {}
    about: dict[Way, dict[str, Any]] = {}
    for way in (REFERENCE, *ways):
        try:
            calls[way], added = started(lambda way=way: partial(way_of(model, x, *way), x), device)
            about[way] = {"peak_mb": added, "max_difference": float((calls[way]() - expected).abs().max())}
        except Exception as error:
            backend = {"stage": "network", "backend": way[0], "precision": way[1]}
            yield "failed.jsonl", {**protocol, **backend, "error": f"{type(error).__name__}: {error}"[:600]}
    timings = time_in_turns(calls, device, **watch)
    now = session(device)
    for way, timing in timings.items():
        row = timed("network", way, timing, batch) | timing.ratio_row(timings.get(REFERENCE))
        yield "speed.jsonl", {**protocol, **row, **about[way], **now}


def way_of(model: S2FPN, x: Tensor, backend: str, precision: str) -> Run:
    """`run(x)` -> logits (B, K, H, W) float32. In a half precision the weights are held in it, and never cast."""
    tf32, dtype = precision != "float32", AMP_DTYPES.get(precision, torch.float32)
    if backend in (PUBLISHED, NO_GRAD):
        run = PublishedInference(model, grad=backend == PUBLISHED)
    elif backend in ("TensorRT", "onnxruntime CUDA", "onnxruntime CPU"):
        run = onnx_runner(simplify(model), x, backend, precision)
    else:
        network = copy.deepcopy(model) if backend == "plain" else simplify(model)
        layout = torch.contiguous_format if backend in ("plain", "simplified") else torch.channels_last
        network.to(dtype, memory_format=layout)
        if backend == "compile":
            network = torch.compile(network, dynamic=False)
        elif backend in MODES:
            network = torch.compile(network, dynamic=False, mode=backend)

        def run(x: Tensor) -> Tensor:
            return network(x.to(dtype, memory_format=layout)).float()

        if backend in (GRAPH, "compile") and x.is_cuda:
            run = cuda_graphs(run)

    def with_flags(x: Tensor) -> Tensor:
        allow_tf32(tf32)
        with torch.inference_mode():
            return run(x)

    return with_flags


def onnx_runner(network: nn.Module, x: Tensor, backend: str, precision: str) -> Run:
    """The exported network in onnxruntime, whose inputs and outputs stay on the device."""
    import onnxruntime

    provider = {"TensorRT": "TensorrtExecutionProvider", "onnxruntime CUDA": "CUDAExecutionProvider"}.get(backend)
    provider = provider or "CPUExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise ImportError(f"this onnxruntime has no {provider}")
    with evaluation_mode(network):
        classes, file = network(x).shape[1], io.BytesIO()
        export_onnx(network, file, x, dynamic=False)
    settings = {"trt_fp16_enable": precision == "fp16"} if backend == "TensorRT" else {}
    session = onnxruntime.InferenceSession(file.getvalue(), providers=[(provider, settings)])
    binding, kind = session.io_binding(), x.device.type
    logits = torch.empty(len(x), classes, *x.shape[2:], device=x.device)

    def run(x: Tensor) -> Tensor:
        x = x.contiguous()
        for bind, name, tensor in ((binding.bind_input, "image", x), (binding.bind_output, "logits", logits)):
            bind(name, kind, x.device.index or 0, "float32", tuple(tensor.shape), tensor.data_ptr())
        session.run_with_iobinding(binding)
        return logits.clone()

    return run


def measure_steps(
    name: str, size: tuple[int, int], batch: int, ways: Sequence[str], device: torch.device, **watch: Any
) -> Rows:
    """Rows of one optimizer step on a batch that is on the device, all `ways` in turns with each other."""
    allow_tf32(True)
    protocol = {"network": name, "height": size[0], "width": size[1], "batch": batch}
    calls: dict[str, Callable[[], Any]] = {}
    added = {}
    with cudnn_search(name, device):
        for way in ways:
            try:
                calls[way], added[way] = started(partial(make_step, way, name, size, batch, str(device), True), device)
            except Exception as error:
                yield "failed.jsonl", {**protocol, "way": way, "error": f"{type(error).__name__}: {error}"[:600]}
        timings = time_in_turns(calls, device, **watch)
    now = session(device)
    for way, timing in timings.items():
        row = {**protocol, "way": way, **timing.row(), "images_per_s": round(batch / timing.p50, 2)}
        yield "training.jsonl", {**row, **timing.ratio_row(timings.get("published")), "peak_mb": added[way], **now}
    make_step.cache_clear()


def started(make: Callable[[], Callable[[], Any]], device: torch.device) -> tuple[Callable[[], Any], float | None]:
    """What `make` returns, after two calls, and the MB that it added: what it keeps, and the peak of the second call.

    The first call needs memory for cuDNN's search.
    """
    gc.collect()
    before = peak_mb(device, reset=True)
    call = make()
    call()
    peak_mb(device, reset=True)
    call()
    return call, None if before is None else round(max(0.0, peak_mb(device) - before), 1)
