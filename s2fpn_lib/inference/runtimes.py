"""The runtimes that run an exported network on the CPU: onnxruntime and OpenVINO, one session per input size."""

import ctypes
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from s2fpn_lib.inference.export import export_onnx, onnx_session
from s2fpn_lib.inference.int8 import Quantizer, accurate_part
from s2fpn_lib.metrics import class_ids

RUNTIMES = {"onnxruntime": ("float32", "int8"), "openvino": ("float32", "bf16", "int8")}  # and their precisions


class RuntimeRunner:
    """A function from (B, 3, H, W) float32 inputs to (B, K, H, W) float32 logits.

    A session is created when a size first occurs: a runtime plans better for a known size. int8 takes the activation
    ranges from the images of `example`, resized to that size, and measures on them: `changed`, the share of their
    pixels that get another class; `float_layers`, which were left in float so that this is at most `tolerance`; and
    `milliseconds` of int8 and of float32.

    Raises ImportError if a package is missing, ValueError if the processor lacks bfloat16.
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
            model = self._export(x)
            if self.precision == "int8":
                model = Quantizer(model, _batches(self.example, x.shape), self.runtime).write(self.nodes)
            self.sessions[x.shape] = self._session(model, self.precision)
        return self.sessions[x.shape](x.contiguous())

    def _export(self, x: Tensor) -> bytes:
        file = io.BytesIO()
        export_onnx(self.network, file, x, dynamic=False)
        return file.getvalue()

    def _session(self, model: bytes, precision: str) -> Callable[[Tensor], Tensor]:
        return _openvino(model, precision) if self.runtime == "openvino" else _onnxruntime(model)

    def _choose_layers(self, tolerance: float) -> None:
        images = self.example.split(1)
        model = self._export(images[0])
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


def _batches(examples: Tensor, shape: torch.Size) -> list[Tensor]:
    """All examples, resized, in batches of `shape`; the last one is filled up with the first examples."""
    images = F.interpolate(examples, shape[-2:], mode="bilinear")
    count, batch = len(images), shape[0]
    return list(images[torch.arange(-(-count // batch) * batch) % count].split(batch))


def _onnxruntime(model: bytes) -> Callable[[Tensor], Tensor]:
    session = onnx_session(model)
    return lambda x: torch.from_numpy(session.run(None, {"image": x.numpy()})[0])


@contextmanager
def kept_signal_stack() -> Iterator[None]:
    """Restore the alternative signal stack of the calling thread at the end of the block.

    OpenVINO's CPU plugin installs its own signal stack, and when it is unloaded, it restores the one that it found. If
    plugins are not unloaded in reverse order, that one has been freed, and the next signal that Python handles kills
    the process. With the first stack restored at once, the plugin has nothing to restore.
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    sigaltstack = ctypes.CDLL(None).sigaltstack
    before = ctypes.create_string_buffer(64)  # larger than a stack_t
    sigaltstack(None, before)
    try:
        yield
    finally:
        sigaltstack(before, None)


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
    return lambda x: torch.from_numpy(request.infer({"image": x.numpy()}, share_inputs=True)["logits"])
