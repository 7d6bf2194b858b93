"""Exported networks run without this library, at sizes they were not exported at."""

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

WITHOUT_TORCH = """
import sys
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
(logits,) = session.run(None, {"image": np.load(sys.argv[2])})
np.save(sys.argv[3], logits)
assert "torch" not in sys.modules
"""


EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "run_onnx.py"
# sys.modules[...] = None makes every import of it fail
BLOCK_TORCH = "import runpy, sys; sys.modules['torch'] = None; runpy.run_path(sys.argv.pop(1), run_name='__main__')"


@pytest.fixture(scope="module", params=["s2fpn_lite", "s2fpn18"])
def model(request):
    torch.manual_seed(0)
    return build_model(request.param, num_classes=4).eval()


def other_sizes(model):
    """Sizes that the model was not exported at; s2fpn_lite takes multiples of 32."""
    return [(2, 96, 160)] if model.config["name"] == "s2fpn_lite" else [(2, 77, 135)]


def test_onnx_runs_without_torch_at_other_sizes(model, tmp_path):
    pytest.importorskip("onnxruntime", reason="needs the extra [onnx]")
    path = tmp_path / "model.onnx"
    export_onnx(simplify(model), path, torch.randn(2, 3, 128, 96))
    for batch, height, width in other_sizes(model):
        image = torch.randn(batch, 3, height, width)
        np.save(tmp_path / "image.npy", image.numpy())
        files = [path, tmp_path / "image.npy", tmp_path / "logits.npy"]
        subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *map(str, files)], check=True, timeout=120)
        with torch.inference_mode():
            expected = model(image)
        torch.testing.assert_close(torch.from_numpy(np.load(files[2])), expected, rtol=1e-3, atol=1e-3)


def test_the_example_runs_where_torch_cannot_be_imported(model, tmp_path):
    pytest.importorskip("onnxruntime", reason="needs the extra [onnx]")
    path, source, target = (tmp_path / name for name in ("model.onnx", "picture.png", "classes.png"))
    export_onnx(simplify(model), path, torch.randn(2, 3, 128, 96))
    pixels = np.random.default_rng(0).integers(0, 256, (160, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(source)
    command = [sys.executable, "-c", BLOCK_TORCH, EXAMPLE, path, source, target]
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "96x160" in result.stdout
    with torch.inference_mode():
        expected = model(model.preprocess(torch.from_numpy(pixels).permute(2, 0, 1)[None])).argmax(1)[0]
    assert (np.asarray(Image.open(target)) == expected.numpy()).mean() > 0.999


def test_parity_is_measured_and_demanded(model, tmp_path):
    pytest.importorskip("onnxruntime", reason="needs the extra [onnx]")
    path = tmp_path / "model.onnx"
    export_onnx(simplify(model), path, torch.randn(2, 3, 128, 96))
    x = torch.randn(1, 3, 96, 160)
    assert 0 <= onnx_difference(model, path, x) < 1e-3
    other = copy.deepcopy(model)
    torch.nn.init.normal_(other.head.weight, std=10)
    with pytest.raises(RuntimeError, match=r"gives other logits than the model at \(1, 3, 96, 160\)"):
        onnx_difference(other, path, x)


def test_a_program_runs_without_this_library_at_other_sizes(model, tmp_path):
    path = tmp_path / "model.pt2"
    export_program(simplify(model), path, torch.randn(2, 3, 128, 96))
    loaded = torch.export.load(path).module()
    for batch, height, width in other_sizes(model):
        image = torch.randn(batch, 3, height, width)
        with torch.inference_mode():
            torch.testing.assert_close(loaded(image), model(image), rtol=1e-3, atol=1e-3)


def test_lite_says_which_sizes_it_exports(tmp_path):
    model = build_model("s2fpn_lite", num_classes=4)
    with pytest.raises(ValueError, match=r"multiples of 32, and the example is \(90, 128\)"):
        export_program(simplify(model), tmp_path / "model.pt2", torch.randn(1, 3, 90, 128))
