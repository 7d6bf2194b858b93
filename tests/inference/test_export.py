"""Exported networks run without this library, at sizes that they were not exported at."""

import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from s2fpn_lib.inference.export import export_onnx, export_program, onnx_difference
from s2fpn_lib.inference.simplify import simplify
from s2fpn_lib.model import build_model

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "run_onnx.py"
# sys.modules[...] = None makes each import of it fail
BLOCK_TORCH = "import runpy, sys; sys.modules['torch'] = None; runpy.run_path(sys.argv.pop(1), run_name='__main__')"


@pytest.fixture(scope="module", params=["s2fpn_lite", "s2fpn18"])
def model(request):
    torch.manual_seed(0)
    return build_model(request.param, num_classes=4).eval()


@pytest.fixture(scope="module")
def onnx_file(model, tmp_path_factory):
    pytest.importorskip("onnxruntime", reason="needs the extra [onnx]")
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export_onnx(simplify(model), path, torch.randn(2, 3, 128, 96))
    return path


@pytest.fixture
def other_input(model):
    """A batch at a size that the model was not exported at; s2fpn_lite needs multiples of 32."""
    size = (96, 160) if model.config["name"] == "s2fpn_lite" else (77, 135)
    return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))


def test_example_runs_without_torch(model, onnx_file, tmp_path):
    source, target = tmp_path / "picture.png", tmp_path / "classes.png"
    pixels = np.random.default_rng(0).integers(0, 256, (160, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(source)
    command = [sys.executable, "-c", BLOCK_TORCH, EXAMPLE, onnx_file, source, target]
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "96x160" in result.stdout
    with torch.inference_mode():
        expected = model(model.preprocess(torch.from_numpy(pixels).permute(2, 0, 1)[None])).argmax(1)[0]
    assert (np.asarray(Image.open(target)) == expected.numpy()).mean() > 0.999


def test_onnx_difference(model, onnx_file, other_input):
    assert 0 <= onnx_difference(model, onnx_file, other_input) < 1e-3
    other = copy.deepcopy(model)
    torch.nn.init.normal_(other.head.weight, std=10)
    with pytest.raises(RuntimeError, match=r"gives other logits than the model at \(1, 3, "):
        onnx_difference(other, onnx_file, other_input)


def test_program_runs_at_other_sizes(model, other_input, tmp_path):
    path = tmp_path / "model.pt2"
    export_program(simplify(model), path, torch.randn(2, 3, 128, 96))
    loaded = torch.export.load(path).module()
    with torch.inference_mode():
        torch.testing.assert_close(loaded(other_input), model(other_input), rtol=1e-3, atol=1e-3)


def test_lite_rejects_an_example_of_another_size(tmp_path):
    model = build_model("s2fpn_lite", num_classes=4)
    with pytest.raises(ValueError, match=r"multiples of 32, and the example is \(90, 128\)"):
        export_program(simplify(model), tmp_path / "model.pt2", torch.randn(1, 3, 90, 128))
