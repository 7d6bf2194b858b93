"""Exported networks run without this library, at sizes they were not exported at."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from s2fpn_lib.export import export_onnx, export_program
from s2fpn_lib.model import build_model
from s2fpn_lib.optimize import simplify

WITHOUT_TORCH = """
import sys
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
(logits,) = session.run(None, {"image": np.load(sys.argv[2])})
np.save(sys.argv[3], logits)
assert "torch" not in sys.modules
"""


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model("s2fpn_lite", num_classes=4).eval()


@pytest.mark.parametrize("size", [(2, 64, 96), (1, 45, 71)])
def test_onnx_runs_without_torch_at_other_sizes(model, size, tmp_path):
    pytest.importorskip("onnxruntime", reason="needs the extra [onnx]")
    path = tmp_path / "model.onnx"
    export_onnx(simplify(model), path, torch.randn(1, 3, 96, 128))
    batch, height, width = size
    image = torch.randn(batch, 3, height, width)
    np.save(tmp_path / "image.npy", image.numpy())
    files = [path, tmp_path / "image.npy", tmp_path / "logits.npy"]
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *map(str, files)], check=True, timeout=120)
    with torch.inference_mode():
        expected = model(image)
    torch.testing.assert_close(torch.from_numpy(np.load(files[2])), expected, rtol=1e-3, atol=1e-3)


def test_a_program_runs_without_this_library_at_other_sizes(model, tmp_path):
    path = tmp_path / "model.pt2"
    export_program(simplify(model), path, torch.randn(2, 3, 96, 128))
    image = torch.randn(1, 3, 45, 71)
    with torch.inference_mode():
        result = torch.export.load(path).module()(image)
        torch.testing.assert_close(result, model(image), rtol=1e-3, atol=1e-3)
