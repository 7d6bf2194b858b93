"""Ways to run a network, from the published one to compiled half precision, timed in turns on one device.

Tasks give rows for speed.jsonl, training.jsonl, and loader.jsonl in the format of 12_speed. Ratios of speed rows are to
the published way as PyTorch's defaults run it on a GPU: its convolutions multiply in TF32.
"""

import copy
import itertools
import tomllib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from s2fpn_lib.benchmark.inference import NO_GRAD, PUBLISHED, Run, measure_rows, session, started, timed
from s2fpn_lib.benchmark.published import PublishedInference
from s2fpn_lib.benchmark.timing import time_in_turns
from s2fpn_lib.benchmark.training import make_step, measure_loader
from s2fpn_lib.inference.export import onnx_model
from s2fpn_lib.inference.optimize import cuda_graphs, simplify
from s2fpn_lib.model import S2FPN, build_model
from s2fpn_lib.model.complexity import measure_complexity
from s2fpn_lib.model.tta import AMP_DTYPES
from s2fpn_lib.train import cudnn_search

Rows = Iterator[tuple[str, dict[str, Any]]]
Task = tuple[float, Callable[[], Rows]]  # about how many seconds it needs, and what gives its rows
Way = tuple[str, str]  # how it is run, precision
REFERENCE = (PUBLISHED, "tf32")
MODES = ("reduce-overhead", "max-autotune")  # of torch.compile
GRAPH = "CUDA graph"  # of the simplified network in channels_last
SECONDS = {"compile": 30, "reduce-overhead": 30, "max-autotune": 90, "compiled": 60}  # that a way needs; others: 1
WATCH = {"repeats": 3, "seconds": 0.1, "least": 5, "warmup": 1.0}


def tasks(device: torch.device, end: float, out: Path) -> dict[str, Task]:
    """The measurements of gpu_plan.toml; on a CPU with a fourth of the sides, and neither CUDA graphs nor fp16."""
    plan = tomllib.loads(Path(__file__).with_name("gpu_plan.toml").read_text())
    gpu, found = device.type == "cuda", {}
    for entry in (plan["default"] | given for given in plan["measure"]):
        ways = [w for w in plan["ways"][entry["ways"]] if gpu or not (w.startswith(GRAPH) or w.endswith("fp16"))]
        needed = entry["needs"] + sum(SECONDS.get(way.partition(" ")[0].strip(","), 1) for way in ways)
        places = [entry[each] for each in ("batches", "sizes", "networks", "revisions")]
        for batch, (height, width), name, revision in itertools.product(*places) if ways else ():
            size = (height, width) if gpu else (height // 4, width // 4)
            title = f"{entry['what']} {name} {revision} {size[0]}x{size[1]} batch {batch}: {', '.join(ways)}"
            found[title] = needed, partial(measure, entry["what"], name, revision, size, batch, ways, device)
    return found


def measure(
    what: str, name: str, revision: str, size: tuple[int, int], batch: int, ways: Sequence[str], device: torch.device
) -> Rows:
    """The rows of one measurement of the plan."""
    if what == "network":
        pairs = [(backend, precision) for backend, _, precision in (way.rpartition(" ") for way in ways)]
        return measure_ways(name, revision, size, batch, pairs, device)
    if what == "training step":
        return measure_steps(name, size, batch, ways, device)
    allow_tf32(True)
    if what == "loader":
        workers = (4, 14) if device.type == "cuda" else (1,)
        files = {"images": 32, "workers": workers, "repeats": 3, "seconds": 0.3, "least": 3}
        return (("loader.jsonl", row) for row in measure_loader("camvid", size, batch, **files))
    options = {"backends": ways, "precisions": ("float32", *AMP_DTYPES), "device": device, **WATCH}
    return (("speed.jsonl", row) for row in measure_rows([name], [size], **options))


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
    name: str, revision: str, size: tuple[int, int], batch: int, ways: Sequence[Way], device: torch.device
) -> Rows:
    """Rows of the stage "network", `ways` in turns with the published one; a way that fails gives its error."""
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
    calls, about = {}, {}
    for way in (REFERENCE, *ways):
        try:
            run, added = started(partial(way_of, model, x, *way), device, x)
            about[way] = {"peak_mb": added, "max_difference": float((run(x) - expected).abs().max())}
            calls[way] = partial(run, x)
        except Exception as error:
            backend = {"stage": "network", "backend": way[0], "precision": way[1]}
            yield "failed.jsonl", {**protocol, **backend, "error": f"{type(error).__name__}: {error}"[:600]}
    timings = time_in_turns(calls, device, **WATCH)
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
        if backend in ("compile", *MODES):
            network = torch.compile(network, dynamic=False, mode=backend if backend in MODES else None)

        def run(x: Tensor) -> Tensor:
            return network(x.to(dtype, memory_format=layout)).float()

        if backend in (GRAPH, "compile") and x.is_cuda:
            run = cuda_graphs(run)

    @torch.inference_mode()
    def with_flags(x: Tensor) -> Tensor:
        allow_tf32(tf32)
        return run(x)

    return with_flags


def onnx_runner(network: nn.Module, x: Tensor, backend: str, precision: str) -> Run:
    """The exported network in onnxruntime, whose inputs and outputs stay on the device."""
    import onnxruntime

    provider = {"TensorRT": "Tensorrt", "onnxruntime CUDA": "CUDA"}.get(backend, "CPU") + "ExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise ImportError(f"this onnxruntime has no {provider}")
    settings = {"trt_fp16_enable": precision == "fp16"} if backend == "TensorRT" else {}
    session = onnxruntime.InferenceSession(onnx_model(network, x), providers=[(provider, settings)])
    binding, kind = session.io_binding(), x.device.type
    logits = torch.empty(session.get_outputs()[0].shape, device=x.device)

    def run(x: Tensor) -> Tensor:
        x = x.contiguous()
        for bind, name, tensor in ((binding.bind_input, "image", x), (binding.bind_output, "logits", logits)):
            bind(name, kind, x.device.index or 0, "float32", tuple(tensor.shape), tensor.data_ptr())
        session.run_with_iobinding(binding)
        return logits.clone()

    return run


def measure_steps(name: str, size: tuple[int, int], batch: int, ways: Sequence[str], device: torch.device) -> Rows:
    """Rows of one optimizer step on a batch that is on the device, all `ways` in turns with each other."""
    allow_tf32(True)
    protocol = {"network": name, "height": size[0], "width": size[1], "batch": batch}
    calls, added = {}, {}
    with cudnn_search(name, device):
        for way in ways:
            try:
                calls[way], added[way] = started(partial(make_step, way, name, size, batch, str(device), True), device)
            except Exception as error:
                yield "failed.jsonl", {**protocol, "way": way, "error": f"{type(error).__name__}: {error}"[:600]}
        timings = time_in_turns(calls, device, **WATCH)
    now = session(device)
    for way, timing in timings.items():
        row = {**protocol, "way": way, **timing.row(), "images_per_s": round(batch / timing.p50, 2)}
        yield "training.jsonl", {**row, **timing.ratio_row(timings.get("published")), "peak_mb": added[way], **now}
    make_step.cache_clear()
