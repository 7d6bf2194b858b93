"""The runtimes onnxruntime and OpenVINO on the CPU: one session per input size, float or 8-bit integers."""

import copy
import ctypes
import math
import os
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from s2fpn_lib.evaluate import progress_bar
from s2fpn_lib.inference.export import onnx_model, onnx_session
from s2fpn_lib.metrics import class_ids
from s2fpn_lib.runs import naming

RUNTIMES = {"onnxruntime": ("float32", "int8"), "openvino": ("float32", "bf16", "int8")}  # and their precisions
MAX_TRIALS = 48  # of the search for layers that stay in float
OMP_PAUSE_SOFT = 1  # of omp.h


class RuntimeRunner:
    """A function from (B, 3, H, W) float32 inputs to (B, K, H, W) float32 logits.

    A session is created when a size first occurs: a runtime plans better for a known size. int8 takes the activation
    ranges from the images of `example`, resized to that size, and measures on them: `changed`, the share of their
    pixels that get another class; `float_layers`, which were left in float so that this is at most `tolerance`; and
    `milliseconds` of int8 and of float32. Raises ImportError or ValueError for a missing package or bfloat16.
    """

    def __init__(self, network: nn.Module, example: Tensor, runtime: str, precision: str, tolerance: float) -> None:
        self.network, self.example, self.runtime, self.precision = network, example, runtime, precision
        self.sessions: dict[torch.Size, Callable[[Tensor], Tensor]] = {}
        self.float_layers: list[str] = []
        if precision == "int8":
            self._choose_layers(tolerance)
        else:
            self(example)

    def __call__(self, x: Tensor) -> Tensor:
        if x.shape not in self.sessions:
            model = onnx_model(self.network, x)
            if self.precision == "int8":
                images = F.interpolate(self.example, x.shape[-2:], mode="bilinear")
                count, batch = len(images), len(x)
                # batches of the same size; the last one is filled up with the first images
                batches = images[torch.arange(-(-count // batch) * batch) % count].split(batch)
                model = Quantizer(model, batches, self.runtime).write(self.nodes)
            self.sessions[x.shape] = self._session(model, self.precision)
        return self.sessions[x.shape](x.contiguous())

    def _session(self, model: bytes, precision: str) -> Callable[[Tensor], Tensor]:
        if self.runtime == "openvino":
            return _openvino(model, precision)
        session = onnx_session(model)
        return lambda x: torch.from_numpy(session.run(None, {"image": x.numpy()})[0])

    def _choose_layers(self, tolerance: float) -> None:
        images = self.example.split(1)
        model = onnx_model(self.network, images[0])
        quantizer, exact = Quantizer(model, images, self.runtime), self._session(model, "float32")
        expected = [class_ids(exact(image.contiguous())) for image in images]

        def changed(nodes: Sequence[str]) -> float:
            self.sessions[images[0].shape] = self._session(quantizer.write(nodes), "int8")
            pairs = zip(images, expected, strict=True)
            self.changed = float(torch.cat([class_ids(self(x)) != ids for x, ids in pairs]).float().mean())
            return self.changed

        self.nodes = accurate_part(list(quantizer.layers), changed, tolerance)
        changed(self.nodes)
        self.float_layers = [layer for node, layer in quantizer.layers.items() if node not in self.nodes]
        calls = [{"run": run, "x": images[0].contiguous()} for run in (self, exact)]
        timers = [Timer("run(x)", globals=call, num_threads=torch.get_num_threads()) for call in calls]
        times = torch.tensor([[timer.timeit(1).mean for timer in timers] for _ in range(7)])  # in turns
        self.milliseconds = (1e3 * times.median(dim=0).values).tolist()


class Quantizer:
    """A float32 model of `onnx_model`, to be written in 8-bit integers: weights per output channel, activations in the
    ranges that the `examples`, inputs of its shape, lead to.

    `layers` maps the name of each node that can be quantized to the name of its layer. The `runtime` that shall run the
    file decides what is quantized besides convolutions.
    """

    def __init__(self, model: bytes, examples: Iterable[Tensor], runtime: str) -> None:
        import onnx
        from onnxruntime.quantization.calibrate import create_calibrator
        from onnxruntime.quantization.registry import QDQRegistry
        from onnxruntime.quantization.shape_inference import quant_pre_process

        inputs = ({"image": example.contiguous().numpy()} for example in examples)
        # OpenVINO fuses the rounding of a convolution's input into the operator before it. onnxruntime computes in
        # integers only between rounded inputs and outputs. Each is slower with the other's file.
        self.op_types = ["Conv"] if runtime == "openvino" else list(QDQRegistry)
        self.options = {"OpTypesToExcludeOutputQuantization": ["Conv"]} if runtime == "openvino" else {}
        with tempfile.TemporaryDirectory() as folder, naming(Path(folder)):
            source, inferred, augmented = (Path(folder) / f"{name}.onnx" for name in ("float", "inferred", "ranges"))
            source.write_bytes(model)
            quant_pre_process(source, inferred, skip_symbolic_shape=True)
            calibrator = create_calibrator(inferred, self.op_types, augmented)
            calibrator.collect_data(SimpleNamespace(get_next=lambda: next(inputs, None)))
            self.ranges, self.model = calibrator.compute_data(), onnx.load(inferred)
        weights = {node.name: node.input[1] for node in self.model.graph.node if node.op_type == "Conv"}
        names = [node.name for node in self.model.graph.node if node.op_type in self.op_types]
        self.layers = {name: weights.get(name, name).removesuffix(".weight") for name in names}

    def write(self, nodes: Collection[str]) -> bytes:
        """The file in which these nodes are quantized; all others stay in float."""
        from onnxruntime.quantization import QDQQuantizer, QuantType

        types, kept = (QuantType.QInt8, QuantType.QUInt8), [name for name in self.layers if name not in nodes]
        arguments = (True, False, *types, self.ranges, [], kept, self.op_types, self.options)
        quantizer = QDQQuantizer(copy.deepcopy(self.model), *arguments)
        quantizer.quantize_model()
        return quantizer.model.model.SerializeToString()


def accurate_part(layers: Sequence[str], changed: Callable[[Sequence[str]], float], tolerance: float) -> list[str]:
    """The layers that can be quantized together so that `changed(them)` is at most `tolerance`.

    Where all together exceed it, they are halved until those are found that exceed it alone; while the others together
    still do, again with half of the tolerance. Parts that were not examined in `MAX_TRIALS` calls count as harmful.
    """
    trials: dict[tuple[str, ...], float] = {}

    def harmful(part: list[str], allowed: float) -> list[str]:
        if harm(part) <= allowed:
            return []
        half = len(part) // 2
        return harmful(part[:half], allowed) + harmful(part[half:], allowed) if half else part

    with progress_bar(MAX_TRIALS, desc="layers of int8", unit="trial") as bar:

        def harm(part: list[str]) -> float:
            if tuple(part) not in trials and len(trials) < MAX_TRIALS:
                trials[tuple(part)] = changed(part)
                bar.update(1)
            return trials.get(tuple(part), math.inf)

        quantized, allowed = list(layers), tolerance
        while quantized and harm(quantized) > tolerance:
            found = harmful(quantized, allowed)
            quantized, allowed = [layer for layer in quantized if layer not in found], allowed / 2
    return quantized


@contextmanager
def kept_signal_stack() -> Iterator[None]:
    """Restore the alternative signal stack of the calling thread at the end of the block. OpenVINO's CPU plugin has its
    own and, when it is unloaded, restores the one that it found. If plugins are not unloaded in reverse order, that one
    has been freed, and the next signal that Python handles kills the process."""
    with ExitStack() as stack:
        if sys.platform.startswith("linux"):
            sigaltstack, before = ctypes.CDLL(None).sigaltstack, ctypes.create_string_buffer(64)  # over a stack_t
            sigaltstack(None, before)
            stack.callback(sigaltstack, before, None)
        yield


@kept_signal_stack()
def _openvino(model: bytes, precision: str) -> Callable[[Tensor], Tensor]:
    try:
        import openvino
    except ImportError as error:
        raise ImportError("openvino is missing: pip install 's2fpn-workbench[openvino]'") from error

    core = openvino.Core()
    limited = os.environ.get("ONEDNN_MAX_CPU_ISA")  # to older instructions; the capabilities ignore it
    bfloat16 = not limited and "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision == "bf16" and not bfloat16:
        raise ValueError("this processor has no bfloat16 arithmetic for openvino; use precision float32 or int8")
    settings = {
        # int8: of what is not quantized. The default of float32 would be bf16
        "INFERENCE_PRECISION_HINT": "bf16" if bfloat16 and precision != "float32" else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = core.compile_model(core.read_model(model), "CPU", settings).create_infer_request()

    def run(x: Tensor) -> Tensor:
        end_waiting_threads()
        return torch.from_numpy(request.infer({"image": x.numpy()}, share_inputs=True)["logits"])

    return run


def end_waiting_threads() -> None:
    """End the threads of this thread's last PyTorch operator (OpenMP). They would wait actively for the next operator,
    which starts them again, for some milliseconds and on the cores that another runtime needs."""
    if sys.platform.startswith("linux"):
        with suppress(AttributeError):  # OpenMP before 5.0
            ctypes.CDLL(None).omp_pause_resource_all(OMP_PAUSE_SOFT)
