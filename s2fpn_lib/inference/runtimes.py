"""The runtimes that run an exported network on the CPU: onnxruntime and OpenVINO, one session per input size."""

import ctypes
import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2fpn_lib.inference.export import export_onnx, onnx_session, quantize_onnx

RUNTIMES = {"onnxruntime": ("float32", "int8"), "openvino": ("float32", "bf16", "int8")}  # and their precisions


def runtime_runner(network: nn.Module, example: Tensor, runtime: str, precision: str) -> Callable[[Tensor], Tensor]:
    """A function from (B, 3, H, W) float32 inputs to (B, K, H, W) float32 logits.

    A session is created when a size first occurs: a runtime plans better for a known size. int8 takes the activation
    ranges from the images of `example`, resized to that size.

    Raises ImportError if a package is missing, ValueError if the processor lacks bfloat16.
    """
    sessions: dict[torch.Size, Callable[[Tensor], Tensor]] = {}

    def run(x: Tensor) -> Tensor:
        if x.shape not in sessions:
            file = io.BytesIO()
            export_onnx(network, file, x, dynamic=False)
            model = file.getvalue()
            if precision == "int8":
                model = quantize_onnx(model, _batches(example, x.shape))
            sessions[x.shape] = _openvino(model, precision) if runtime == "openvino" else _onnxruntime(model)
        return sessions[x.shape](x.contiguous())

    run(example)
    return run


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
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise ValueError("this processor has no bfloat16 arithmetic for openvino; use precision float32 or int8")
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",  # the default would be bf16
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = core.compile_model(core.read_model(model), "CPU", settings).create_infer_request()
    return lambda x: torch.from_numpy(request.infer({"image": x.numpy()}, share_inputs=True)["logits"])
