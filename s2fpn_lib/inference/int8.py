"""8-bit integers: ranges from calibration images, and which layers stay in float where integers cost accuracy."""

import copy
import math
import tempfile
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

from s2fpn_lib.data import SegmentationDataset, evenly_spaced
from s2fpn_lib.model import S2FPN
from s2fpn_lib.model.tta import at_size
from s2fpn_lib.progress import progress_bar

CALIBRATION_IMAGES = 8
MAX_TRIALS = 48  # of the search for layers that stay in float


def calibration_images(
    model: S2FPN, example: Tensor | SegmentationDataset, scored: SegmentationDataset | None
) -> Tensor:
    """The inputs (B, 3, H, W) whose activations give the ranges: `example`, or evenly spaced images of a dataset.

    Raises ValueError if one of them is an image of `scored`: by name for a dataset, otherwise by its pixels.
    """
    if isinstance(example, SegmentationDataset):
        if scored is not None and (both := set(example.names) & set(scored.names)):
            both = f"{min(both)} and {len(both) - 1} more"
            raise ValueError(f"{example.split} (ranges of int8) and {scored.split} (score) share images: {both}")
        indices, size = evenly_spaced(len(example), CALIBRATION_IMAGES), example.protocol.size
        return model.preprocess(torch.stack([at_size(example[i][0], size) for i in indices]))
    for index in range(len(scored) if scored is not None else 0):
        image = model.preprocess(at_size(scored[index][0], example.shape[-2:])[None])
        if (example == image).flatten(1).all(1).any():
            raise ValueError(f"{scored.names[index]} of {scored.split} is scored and gives the ranges of int8")
    return example


class Quantizer:
    """A float32 ONNX model of one fixed input size, to be written in 8-bit integers: weights per output channel.

    onnxruntime and OpenVINO run such a file in integer arithmetic where they can. `layers` maps the name of each node
    that can be quantized to the name of its layer.

    Args:
        model: written by `export_onnx(..., dynamic=False)`.
        examples: inputs of its shape from `model.preprocess`. Their smallest and largest activations become the ranges.
        runtime: which one shall run the file; it decides what is quantized besides convolutions.
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
        with tempfile.TemporaryDirectory() as folder:
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

    Where all together exceed it, they are halved until those are found that exceed it alone. While the others together
    still exceed it, the same is done with half of the tolerance, and so on. Parts that have not been examined after
    `MAX_TRIALS` calls count as harmful.
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
