"""The network as a file for other runtimes: ONNX, in float32 or in 8-bit integers, and a torch.export program."""

import copy
import io
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from s2fpn_lib.model.efficientnet_lite import SameConv2d
from s2fpn_lib.model.modes import evaluation_mode

OPSET = 18
LITE_MULTIPLE = 32
PARITY = 1e-3  # of float32 logits, relative to the largest


def export_onnx(network: nn.Module, target: str | Path | io.BytesIO, example: Tensor, *, dynamic: bool = True) -> None:
    """Write an ONNX file: input `image` (B, 3, H, W) float32 as `preprocess` returns it, output `logits` (B, K, H, W).

    The metadata of the file hold, as JSON, what examples/run_onnx.py needs besides the network: the mean and std that
    `preprocess` uses (R, G, B on the 0..255 scale), and `size_multiple`, of which height and width must be multiples.

    Args:
        network: `simplify.simplify(model)`, or a model itself.
        dynamic: leave batch, height, and width variable (see `dynamic_shapes`); otherwise they are the example's.

    Raises:
        ImportError: the extra [onnx] is not installed.
    """
    require_onnx()
    with evaluation_mode(network):
        program = torch.onnx.export(
            network,
            (example.contiguous(),),
            dynamo=True,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=dynamic_shapes(network, example) if dynamic else None,
            verbose=False,
        )
    program.model.metadata_props.update(
        mean=json.dumps(network.mean.flatten().tolist()),
        std=json.dumps(network.std.flatten().tolist()),
        size_multiple=json.dumps(LITE_MULTIPLE if _has_same_padding(network) else 1),
    )
    if isinstance(target, io.BytesIO):
        target.write(program.model_proto.SerializeToString())
    else:
        program.save(target)


def onnx_difference(model: nn.Module, path: str | Path, x: Tensor) -> float:
    """Largest |difference| between the logits of the file in onnxruntime and of `model`, on inputs x (B, 3, H, W).

    Raises RuntimeError if it is above `PARITY` times the largest logit (or 1).
    """
    (logits,) = onnx_session(path).run(None, {"image": x.contiguous().numpy()})
    return logit_difference(model, torch.from_numpy(logits), x, source=path)


def logit_difference(model: nn.Module, logits: Tensor, x: Tensor, *, source: str | Path, bounded: bool = True) -> float:
    """Largest |difference| between `logits` and those of `model` for x (B, 3, H, W).

    Raises RuntimeError with the `source` of the logits if it is above `PARITY` times the largest logit (or 1), unless
    `bounded` is False.
    """
    with evaluation_mode(model), torch.inference_mode():
        expected = model(x).float()
    difference = float((logits - expected).abs().max())
    if bounded and not difference <= PARITY * max(1.0, float(expected.abs().max())):
        raise RuntimeError(f"{source} gives other logits than the model at {tuple(x.shape)}, by up to {difference:.1e}")
    return difference


def export_program(network: nn.Module, path: str | Path, example: Tensor) -> None:
    """Write a torch.export program (.pt2) that `torch.export.load(path).module()` runs without this library."""
    # channels_last weights would tie the program to relations between the example's height and width
    plain = copy.deepcopy(network).eval().to(memory_format=torch.contiguous_format)
    shapes = dynamic_shapes(network, example)
    torch.export.save(torch.export.export(plain, (example.contiguous(),), dynamic_shapes=shapes), path)


def dynamic_shapes(network: nn.Module, example: Tensor) -> tuple[dict[int, Any]]:
    """The variable dimensions of the exported input: batch from 1, height and width above 64 pixels.

    s2fpn_lite pads as TensorFlow does, by an amount that depends on whether a size is even at each stride; its exported
    sizes are multiples of 32. Raises ValueError if its example has another size.
    """
    dynamic = torch.export.Dim.DYNAMIC
    if not _has_same_padding(network):
        return ({0: dynamic, 2: dynamic, 3: dynamic},)
    if any(size % LITE_MULTIPLE for size in example.shape[-2:]):
        raise ValueError(
            f"s2fpn_lite exports with variable sizes that are multiples of {LITE_MULTIPLE}, and the example is "
            f"{tuple(example.shape[-2:])}: give an example of such a size, or dynamic=False to export_onnx for this one"
        )
    height, width = torch.export.Dim("height", min=3, max=128), torch.export.Dim("width", min=3, max=128)
    return ({0: dynamic, 2: LITE_MULTIPLE * height, 3: LITE_MULTIPLE * width},)


def _has_same_padding(network: nn.Module) -> bool:
    return any(isinstance(module, SameConv2d) for module in network.modules())


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
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{error.name} is missing: pip install 's2fpn-workbench[onnx]' (the extra [onnx])") from error


def quantize_onnx(model: bytes, examples: Iterable[Tensor]) -> bytes:
    """The float32 ONNX `model` of one fixed input size in 8-bit integers: quantize and dequantize pairs around each
    operator, weights per output channel. onnxruntime and OpenVINO run such a file in integer arithmetic where they can.

    The loss of accuracy is not bounded here: evaluate the result.

    Args:
        model: written by `export_onnx(..., dynamic=False)`, for inputs of one shape (B, 3, H, W).
        examples: inputs of that shape from `model.preprocess`. Their smallest and largest activations become the
            ranges. A handful of real images is enough; noise is not.

    Raises:
        ImportError: the extra [onnx] is not installed.
    """
    require_onnx()
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Examples(CalibrationDataReader):
        inputs = iter([{"image": example.contiguous().numpy()} for example in examples])

        def get_next(self) -> dict | None:
            return next(self.inputs, None)

    with tempfile.TemporaryDirectory() as folder:
        source, inferred, target = (Path(folder) / f"{name}.onnx" for name in ("float", "inferred", "int8"))
        source.write_bytes(model)
        quant_pre_process(source, inferred, skip_symbolic_shape=True)
        types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
        quantize_static(inferred, target, Examples(), per_channel=True, **types)
        return target.read_bytes()
