"""Optimized networks give the original's logits: every backend, revision, switch and size."""

import functools

import pytest
import torch
from torch import nn
from torch._inductor.utils import run_and_get_code

from s2fpn_lib.checkpoint import load_model
from s2fpn_lib.data import open_dataset
from s2fpn_lib.inference import optimize, optimize_for_inference
from s2fpn_lib.inference.optimize import OptimizedModel
from s2fpn_lib.inference.runtimes import kept_signal_stack
from s2fpn_lib.inference.simplify import simplify
from s2fpn_lib.model import build_model

SIZES = [(64, 96), (32, 32), (45, 71)]


@functools.cache
def scenes() -> torch.Tensor:
    data = open_dataset("roadscenes", split="val")
    return torch.stack([data[index][0] for index in range(8)])


def pictures(height=64, width=96, count=1):
    """(count, 3, height, width) uint8 pieces of RoadScenes."""
    return scenes()[:count, :, 100 : 100 + height, 60 : 60 + width]


def lived_in(name="s2fpn_lite", **options):
    """A model whose batch norms have statistics and scales of their own, as after training."""
    torch.manual_seed(3)
    model = build_model(name, num_classes=5, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.normal_(module.bias, std=0.1)
            module.momentum = None  # cumulative average
        if hasattr(module, "gamma"):
            nn.init.constant_(module.gamma, 0.4)
    with torch.no_grad():
        model.train()(model.preprocess(scenes()[..., ::2, ::2]))
    return model.eval()


def logits(model, x):
    with torch.inference_mode():
        return model(x)


def optimized(model, *arguments, verbose=False, **options):
    return optimize_for_inference(model, model.preprocess(pictures()), *arguments, verbose=verbose, **options)


def assert_same_logits(model, fast, sizes=SIZES):
    for height, width in sizes:
        x = model.preprocess(pictures(height, width, count=2))
        expected = logits(model, x)
        scale = max(1.0, float(expected.abs().max()))
        assert float((fast(x) - expected).abs().max()) <= 1e-3 * scale


@pytest.mark.parametrize("revision", ["v1", "v2"])
@pytest.mark.parametrize("name", ["s2fpn18", "s2fpn34m", "s2fpn50", "s2fpn_lite"])
def test_eager_on_every_kind_of_encoder(name, revision, capsys):
    model = lived_in(name, revision=revision)
    fast = optimized(model, verbose=True)
    assert "largest difference" in capsys.readouterr().out
    assert 0 < fast.max_difference < 1e-3
    assert_same_logits(model, fast)


@pytest.mark.parametrize(
    "switch",
    [
        {"ssam": False},
        {"crb": False},
        {"apf": False},
        {"gfu": False},
        {"gfu_pool": True},
        {"strip_axis": "width"},
        {"double_resolution": True},
        {"deep_supervision": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("revision", ["v1", "v2"])
def test_eager_with_every_switch(switch, revision):
    model = lived_in(revision=revision, **switch)
    assert_same_logits(model, optimized(model))


@pytest.mark.parametrize("revision", ["v1", "v2"])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_runtimes(runtime, revision):
    pytest.importorskip(runtime, reason=f"needs the extra [{runtime}]")
    model = lived_in(revision=revision)
    fast = optimized(model, runtime)
    assert_same_logits(model, fast)


@pytest.mark.parametrize(
    ("runtime", "precision"), [("onnxruntime", "int8"), ("openvino", "int8"), ("openvino", "bf16")]
)
def test_lower_precisions_decide_as_float32_does(runtime, precision):
    package = pytest.importorskip(runtime, reason=f"needs the extra [{runtime}]")
    model = load_model("s2fpn_lite-camvid")
    x = model.preprocess(scenes()[:5, :, :192, :256])
    with kept_signal_stack():
        skills = package.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") if precision == "bf16" else ()
    if precision == "bf16" and "BF16" not in skills:
        with pytest.raises(ValueError, match="no bfloat16"):
            optimize_for_inference(model, x, runtime, precision=precision)
        return
    fast = optimize_for_inference(model, x[:4], runtime, precision=precision, verbose=False)
    assert fast.max_difference > 1e-2, "computed in float32"
    unseen = x[4:]  # another batch size, too
    assert (fast(unseen).argmax(1) == logits(model, unseen).argmax(1)).float().mean() > 0.95


def test_compile():
    model = lived_in()
    with torch._inductor.config.patch(force_disable_caches=True):
        fast, code = run_and_get_code(optimized, model, "compile")
    assert "convolution_pointwise" in "".join(code), "weights are not packed: freezing did not happen"
    assert_same_logits(model, fast, sizes=[(64, 96)])


def test_the_original_is_left_as_it_was():
    model = lived_in().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimized(model)
    assert model.training
    assert len(model.auxiliary) == 4
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_bf16_states_its_difference():
    fast = optimized(lived_in(), precision="bf16")
    assert fast.max_difference > 1e-4
    assert fast(torch.randn(1, 3, 64, 96)).dtype == torch.float32


def test_preprocess_is_the_originals():
    model = lived_in()
    images = torch.randint(0, 256, (1, 3, 40, 50), dtype=torch.uint8)
    fast = optimize_for_inference(model, model.preprocess(images), verbose=False)
    assert torch.equal(fast.preprocess(images), model.preprocess(images))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"backend": "tensorrt"}, "choose one of eager, compile, onnxruntime"),
        ({"precision": "int4"}, "backend 'eager' has float32, bf16, fp16"),
        ({"backend": "onnxruntime", "precision": "bf16"}, "'onnxruntime' has float32, int8"),
    ],
)
def test_what_there_is_not(arguments, error):
    with pytest.raises(ValueError, match=error):
        optimized(lived_in(), **arguments)


def test_an_optimized_model_is_not_optimized_again():
    fast = optimized(lived_in())
    assert isinstance(fast, OptimizedModel)
    with pytest.raises(TypeError, match="made by build_model, got OptimizedModel"):
        optimize_for_inference(fast, torch.randn(1, 3, 64, 96))


def test_a_wrong_transform_is_refused(monkeypatch):
    def broken(model):
        copied = simplify(model)
        nn.init.zeros_(copied.head.weight)
        return copied

    monkeypatch.setattr(optimize, "simplify", broken)
    with pytest.raises(RuntimeError, match="gives other logits than the model"):
        optimized(lived_in())
