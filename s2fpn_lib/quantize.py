"""An ONNX network in 8-bit integers: weights per output channel, activations by the range that real images give."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor


def quantize_onnx(model: bytes, examples: Iterable[Tensor]) -> bytes:
    """The float32 ONNX `model` of one fixed input size with quantize and dequantize pairs around its operators.

    Both onnxruntime and OpenVINO run such a file in integer arithmetic where they can. What it costs in accuracy is
    for an evaluation to say: nothing here bounds it.

    Args:
        model: as `export.export_onnx(..., dynamic=False)` writes it, for inputs of one shape (B, 3, H, W).
        examples: inputs of that shape as `model.preprocess` gives them, from images like those to come: their
            smallest and largest activations become the ranges. A handful is enough; noise is not.

    Raises ImportError without the extra [onnx].
    """
    from s2fpn_lib.export import needs_onnx

    needs_onnx()
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Examples(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter(examples)

        def get_next(self) -> dict | None:
            example = next(self.rest, None)
            return None if example is None else {"image": example.contiguous().numpy()}

    with tempfile.TemporaryDirectory() as folder, _silent():
        source, inferred, target = (Path(folder) / f"{name}.onnx" for name in ("float", "inferred", "int8"))
        source.write_bytes(model)
        quant_pre_process(source, inferred, skip_symbolic_shape=True)
        quantize_static(
            inferred,
            target,
            Examples(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return target.read_bytes()


@contextlib.contextmanager
def _silent():
    """Without the advice that onnxruntime logs and prints for models it has just preprocessed."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(level)
