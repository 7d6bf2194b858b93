"""Every function that runs a model leaves each of its submodules in the mode in which it was."""

import pytest
import torch
from torch import nn

from s2fpn_lib.attention.recorder import AttentionRecorder
from s2fpn_lib.attention.statistics import attention_statistics
from s2fpn_lib.data import get_protocol, open_dataset
from s2fpn_lib.evaluate import evaluate
from s2fpn_lib.inference import export_onnx, export_program, onnx_difference, optimize_for_inference, simplify
from s2fpn_lib.inspector import inspect
from s2fpn_lib.inspector.state import NamedModel, Picture
from s2fpn_lib.model import build_model
from s2fpn_lib.model.complexity import macs_by_part, measure_complexity
from s2fpn_lib.model.tta import evaluation_mode, predict_logits

PROTOCOL = get_protocol("roadscenes")
PICTURE = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class Small(nn.Module):
    """A network that is exported in a second."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.head = nn.Conv2d(4, PROTOCOL.num_classes, 1)
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("std", torch.ones(3))

    def forward(self, x):
        return self.head(self.encoder(x))

    def preprocess(self, images):
        return images.float() / 255


@pytest.fixture(scope="module")
def s2fpn():
    return build_model("s2fpn_lite", num_classes=PROTOCOL.num_classes)


def record(model, x, path):
    with AttentionRecorder(model):
        model(x.repeat(2, 1, 1, 1))


def compare_onnx(model, x, path):
    pytest.importorskip("onnxruntime", reason="needs the extra [onnx]")
    export_onnx(model, path, x, dynamic=False)
    onnx_difference(model, path, x)


def fail(model, x, path):
    with pytest.raises(ValueError, match="at least 32x32"), evaluation_mode(model):
        model(x[..., :16])


CALLERS = {
    "measure_complexity": lambda model, x, path: measure_complexity(model, (32, 32)),
    "macs_by_part": lambda model, x, path: macs_by_part(model, (32, 32)),
    "simplify": lambda model, x, path: simplify(model),
    "optimize_for_inference": lambda model, x, path: optimize_for_inference(model, x, verbose=False),
    "export_onnx and onnx_difference": compare_onnx,
    "export_program": lambda model, x, path: export_program(model, path, x.repeat(2, 1, 1, 1)),
    "predict_logits": lambda model, x, path: predict_logits(model, PICTURE),
    "evaluate": lambda model, x, path: evaluate(model, open_dataset("roadscenes", split="val"), limit=1),
    "AttentionRecorder": record,
    "attention_statistics": lambda model, x, path: attention_statistics(
        model, open_dataset("roadscenes", split="val"), limit=1
    ),
    "inspect": lambda model, x, path: inspect(NamedModel("", model), Picture("", PICTURE[0], (64, 64)), PROTOCOL),
    "an error": fail,
}


@pytest.mark.parametrize("caller", CALLERS)
def test_modes_are_restored(caller, s2fpn, tmp_path):
    """A model in training mode whose encoder, with its BatchNorms, is frozen in evaluation mode."""
    model = (Small() if caller.startswith("export") else s2fpn).train()
    model.encoder.eval()
    before = {name: module.training for name, module in model.named_modules()}
    CALLERS[caller](model, model.preprocess(PICTURE), tmp_path / "model")
    assert {name: module.training for name, module in model.named_modules()} == before
