"""The network as a file for other runtimes: ONNX, and a torch.export program."""

import copy
import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from s2fpn_lib.model.tta import evaluation_mode
from s2fpn_lib.runs import write_atomic

OPSET = 18
PARITY = 1e-3  # of float32 logits, relative to the largest


def export_onnx(network: nn.Module, path: str | Path, example: Tensor, *, dynamic: bool = True) -> None:
    """Write an ONNX file, atomically: input `image` (B, 3, H, W) float32 as `preprocess` returns it, output `logits`
    (B, K, H, W). Its metadata hold, as JSON, the mean and std that `preprocess` uses (R, G, B on 0..255). Raises
    ImportError if the extra [onnx] is not installed.

    Args:
        network: `simplify(model)`, or a model itself.
        dynamic: leave batch, height, and width variable, the sizes from 65 pixels; otherwise they are the example's.
    """
    write_atomic(path, onnx_model(network, example, dynamic=dynamic))


def onnx_model(network: nn.Module, example: Tensor, *, dynamic: bool = False) -> bytes:
    """The content of the file that `export_onnx` writes."""
    require_onnx()
    traced, shapes = variable_input(example) if dynamic else (example.contiguous(), None)
    options = {"dynamo": True, "opset_version": OPSET, "dynamic_shapes": shapes, "verbose": False}
    with evaluation_mode(network):
        program = torch.onnx.export(network, (traced,), input_names=["image"], output_names=["logits"], **options)
    _pad_in_convolutions(program.model)
    for name in ("mean", "std"):
        program.model.metadata_props[name] = json.dumps(getattr(network, name).flatten().tolist())
    return program.model_proto.SerializeToString()


def _pad_in_convolutions(model: Any) -> None:
    """Replace each Pad with computed amounts, which is one of `SameConv2d`, by the same auto_pad of its convolution: a
    runtime then copies no map to pad it."""
    import onnx_ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    for node in model.graph:
        pad = node.inputs[0].producer() if node.op_type == "Conv" else None
        if pad is not None and pad.op_type == "Pad" and pad.inputs[1].const_value is None:
            node.replace_input_with(0, pad.inputs[0])
            node.attributes.pop("pads", None)
            node.attributes["auto_pad"] = onnx_ir.AttrString("auto_pad", "SAME_UPPER")
    RemoveUnusedNodesPass()(model)


def onnx_difference(model: nn.Module, path: str | Path, x: Tensor) -> float:
    """Largest |difference| between the logits of the file in onnxruntime and of `model`, on inputs x (B, 3, H, W);
    RuntimeError if it is above `PARITY` times the largest logit (or 1)."""
    (logits,) = onnx_session(path).run(None, {"image": x.contiguous().numpy()})
    return logit_difference(model, torch.from_numpy(logits), x, source=path)


def logit_difference(model: nn.Module, logits: Tensor, x: Tensor, *, source: str | Path, bounded: bool = True) -> float:
    """`onnx_difference` for given `logits`, whose `source` the error names; with `bounded` False there is none."""
    with evaluation_mode(model), torch.inference_mode():
        expected = model(x).float()
    difference = float((logits - expected).abs().max())
    if bounded and not difference <= PARITY * max(1.0, float(expected.abs().max())):
        raise RuntimeError(f"{source} gives other logits than the model at {tuple(x.shape)}, by up to {difference:.1e}")
    return difference


def export_program(network: nn.Module, path: str | Path, example: Tensor) -> None:
    """Write, atomically, a torch.export program (.pt2) that `torch.export.load(path).module()` runs without this
    library, for any batch, and heights and widths from 65 pixels. Of the example only type and device matter."""
    # channels_last weights would tie the program to relations between height and width
    plain = copy.deepcopy(network).eval().to(memory_format=torch.contiguous_format)
    traced, shapes = variable_input(example)
    file = io.BytesIO()
    torch.export.save(torch.export.export(plain, (traced,), dynamic_shapes=shapes), file)
    write_atomic(path, file.getvalue())


def variable_input(example: Tensor) -> tuple[Tensor, tuple[dict[int, Any]]]:
    """An input to trace with batch, height, and width variable, and the variable dimensions, for torch.export."""
    dynamic = torch.export.Dim.DYNAMIC
    # not the example's shape: a batch of 1 and the small maps of an image of at most 64 pixels are taken for constants
    return example.new_zeros(2, 3, 128, 96), ({0: dynamic, 2: dynamic, 3: dynamic},)


def onnx_session(model: bytes | str | Path) -> Any:
    """An onnxruntime session on the CPU, with as many threads as torch uses."""
    require_onnx()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def require_onnx() -> None:
    """Raise an ImportError that names the extra if a package of [onnx] is missing."""
    for package in ("onnx", "onnxruntime", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise ImportError(f"{package} is missing: pip install 's2fpn-workbench[onnx]' (the extra [onnx])")
