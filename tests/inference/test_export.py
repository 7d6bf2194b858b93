"""Exported networks run without this library, at sizes that they were not exported at."""

import copy
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image

from s2fpn_lib.checkpoint import load_model
from s2fpn_lib.data import open_dataset
from s2fpn_lib.data.images import read_image
from s2fpn_lib.inference.export import export_onnx, export_program, onnx_difference, onnx_session
from s2fpn_lib.inference.optimize import simplify
from s2fpn_lib.model import build_model

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "run_onnx.py"
# sys.modules[...] = None makes each import of it fail
BLOCK_TORCH = "import runpy, sys; sys.modules['torch'] = None; runpy.run_path(sys.argv.pop(1), run_name='__main__')"


@pytest.fixture(scope="module", params=["s2fpn_lite-camvid", "s2fpn18"])
def model(request):
    """The released weights, whose padding depends on the size and whose classes are decided; and a random network.

    The random one has another encoder and, without APF and GFU, no other layers that differ.
    """
    if request.param != "s2fpn18":
        return load_model(request.param)
    torch.manual_seed(0)
    return build_model("s2fpn18", num_classes=4, apf=False, gfu=False).eval()


@pytest.fixture(scope="module")
def onnx_file(model, tmp_path_factory):
    pytest.importorskip("onnxruntime", reason="needs the extra [onnx]")
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export_onnx(simplify(model), path, torch.randn(1, 3, 90, 131))
    return path


@pytest.fixture(scope="module")
def picture():
    """(1, 3, 361, 483) uint8."""
    image = open_dataset("roadscenes", split="val", cache=False)[0][0]
    resized = F.interpolate(image[None].float(), (361, 483), mode="bilinear", antialias=True)
    return resized.round().to(torch.uint8)


@pytest.fixture
def other_input(model, picture):
    """A batch of a size that the model was not exported at."""
    return model.preprocess(picture[..., :77, :135])


@pytest.mark.parametrize("size", [(360, 480), (352, 480), (361, 483), (97, 131), (65, 66)])
def test_onnx_file_takes_any_size(model, onnx_file, picture, size):
    x = model.preprocess(picture[..., : size[0], : size[1]])
    with torch.inference_mode():
        expected = model(x)
    found = torch.from_numpy(onnx_session(onnx_file).run(None, {"image": x.contiguous().numpy()})[0])
    assert float((found - expected).abs().max()) <= 1e-3 * float(expected.abs().max())
    if model.config["name"] == "s2fpn_lite":  # trained: no near ties of classes
        assert int((found.argmax(1) != expected.argmax(1)).sum()) == 0


def test_example_runs_without_torch(model, onnx_file, tmp_path):
    source, target = tmp_path / "picture.jpg", tmp_path / "classes.png"
    upright = np.random.default_rng(0).integers(0, 256, (161, 97, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3  # the pixels in the file are turned by 180 degrees
    Image.fromarray(upright).rotate(180).save(source, exif=exif, quality=95)
    command = [sys.executable, "-c", BLOCK_TORCH, EXAMPLE, onnx_file, source, target]
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "97x161" in result.stdout
    with torch.inference_mode():
        x = model.preprocess(torch.from_numpy(read_image(source)).permute(2, 0, 1)[None])
        expected = model(x).argmax(1)[0]
    assert (np.asarray(Image.open(target)) == expected.numpy()).mean() > 0.999


def test_example_reads_16_bit_grayscale(model, onnx_file, tmp_path):
    main = runpy.run_path(str(EXAMPLE))["main"]
    gray = np.random.default_rng(0).integers(0, 256, (70, 80), dtype=np.uint8)
    for name, pixels in (("8.png", gray), ("16.png", gray.astype(np.uint16) * 257)):
        Image.fromarray(pixels).save(tmp_path / name)
        main(str(onnx_file), tmp_path / name, tmp_path / f"classes-{name}")
    eight, sixteen = (np.asarray(Image.open(tmp_path / f"classes-{bits}.png")) for bits in (8, 16))
    np.testing.assert_array_equal(eight, sixteen)


def test_onnx_difference(model, onnx_file, other_input):
    assert 0 <= onnx_difference(model, onnx_file, other_input) < 1e-3
    other = copy.deepcopy(model)
    torch.nn.init.normal_(other.head.weight, std=10)
    with pytest.raises(RuntimeError, match=r"gives other logits than the model at \(1, 3, "):
        onnx_difference(other, onnx_file, other_input)


def test_program_takes_any_size(model, picture, tmp_path):
    """Of the released network with one APF and one GFU, because torch needs long to load a program of all levels.

    The ONNX file comes from such a program of all levels.
    """
    path = tmp_path / "model.pt2"
    if model.config["name"] == "s2fpn_lite":
        torch.manual_seed(0)
        whole = model
        model = build_model("s2fpn_lite", revision="v2", num_classes=4, apf=False, gfu=False).eval()
        model.encoder, model.apf1, model.gfu4 = whole.encoder, whole.apf1, whole.gfu4  # of the smallest maps
    export_program(simplify(model), path, torch.randn(1, 3, 90, 131))
    loaded = torch.export.load(path).module()
    for height, width in ((65, 66), (128, 96), (97, 131)):
        x = model.preprocess(picture[..., :height, :width])
        with torch.inference_mode():
            expected = model(x)
            assert float((loaded(x) - expected).abs().max()) <= 1e-4 * float(expected.abs().max())
