"""The network as a file for other runtimes: ONNX with a dynamic size, and a torch.export program."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

OPSET = 18


def export_onnx(network: nn.Module, target: str | Path | io.BytesIO, example: Tensor) -> None:
    """Writes an ONNX file: input `image` (B, 3, H, W) float32 as `preprocess` gives it, output `logits` (B, K, H, W).

    Batch, height and width are free, from 32 pixels up. network: `optimize.simplify(model)`, or a model as it is.

    Raises ImportError without the extra [onnx].
    """
    _needs_onnx()
    program = torch.onnx.export(
        network.eval(),
        (example.contiguous(),),
        dynamo=True,
        opset_version=OPSET,
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=_free_sizes(),
        verbose=False,
    )
    if isinstance(target, io.BytesIO):
        target.write(program.model_proto.SerializeToString())
    else:
        program.save(target)


def export_program(network: nn.Module, path: str | Path, example: Tensor) -> None:
    """Writes a torch.export program (.pt2) that `torch.export.load(path).module()` runs without this library."""
    program = torch.export.export(network.eval(), (example,), dynamic_shapes=_free_sizes())
    torch.export.save(program, path)


def onnx_session(model: bytes | str | Path, *, threads: int = 0) -> Any:
    """An onnxruntime session on the CPU. threads: 0 takes all cores."""
    _needs_onnx()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
    )


def _free_sizes() -> tuple[dict[int, Any]]:
    return ({0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC},)


def _needs_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{error.name} is missing: pip install 's2fpn-workbench[onnx]' (the extra [onnx])") from error
