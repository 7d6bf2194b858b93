"""Optimized networks give the logits of the original: every backend, revision, switch, and size."""

import copy
import functools

import pytest
import torch
from torch import nn
from torch._inductor.utils import run_and_get_code

from s2fpn_lib.checkpoint import load_model
from s2fpn_lib.data import open_dataset
from s2fpn_lib.inference import optimize, optimize_for_inference, runtimes
from s2fpn_lib.inference.optimize import OptimizedModel, simplify
from s2fpn_lib.inference.runtimes import kept_signal_stack
from s2fpn_lib.model import build_model

SIZES = [(64, 96), (45, 71)]


@functools.cache
def scenes() -> torch.Tensor:
    data = open_dataset("roadscenes", split="val", cache=False)
    return torch.stack([data[index][0] for index in range(8)])


def pictures(height=64, width=96, count=1):
    """(count, 3, height, width) uint8 crops of RoadScenes."""
    return scenes()[:count, :, 100 : 100 + height, 60 : 60 + width]


def settled(model):
    """The model with statistics and scales of its batch norms as after training, in evaluation mode."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.normal_(module.bias, std=0.1)
            module.momentum = None  # cumulative average
        if hasattr(module, "gamma"):
            nn.init.constant_(module.gamma, 0.4)
    with torch.no_grad():
        model.train()(model.preprocess(scenes()[:4, :, ::2, ::2]))
    return model.eval()


@functools.lru_cache(maxsize=4)
def trained_like(name="s2fpn_lite", **options):
    """A settled model. Tests share it and leave it unchanged."""
    torch.manual_seed(3)
    return settled(build_model(name, num_classes=5, **options))


def short(model):
    """The model with one block in each stage of its EfficientNet; the other blocks have the same layers."""
    for index, stage in enumerate(model.encoder.stages):
        model.encoder.stages[index] = stage[:1]
    return model


def logits(model, x):
    with torch.inference_mode():
        return model(x)


def optimized(model, *arguments, verbose=False, **options):
    return optimize_for_inference(model, model.preprocess(pictures()), *arguments, verbose=verbose, **options)


def assert_same_logits(model, fast, sizes=SIZES, count=2):
    for height, width in sizes:
        x = model.preprocess(pictures(height, width, count))
        expected = logits(model, x)
        scale = max(1.0, float(expected.abs().max()))
        assert float((fast(x) - expected).abs().max()) <= 1e-3 * scale


@pytest.mark.parametrize("revision", ["v1", "v2"])
@pytest.mark.parametrize("name", ["s2fpn18", "s2fpn34m", "s2fpn50", "s2fpn_lite"])
def test_eager_on_every_kind_of_encoder(name, revision, capsys):
    model = trained_like(name, revision=revision)
    fast = optimized(model, verbose=True)
    assert "largest difference" in capsys.readouterr().out
    assert fast.max_difference > 0
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
    model = trained_like(revision=revision, **switch)
    assert_same_logits(model, optimized(model))


@pytest.fixture(scope="module", autouse=True)
def _shared_onnx_files():
    """The runtimes and precisions share the ONNX file of a network and a size, which does not depend on them."""
    files, export = {}, runtimes.onnx_model

    def exported(network, x):
        key = repr(network.config), len(list(network.modules())), tuple(x.shape)
        if key not in files:
            files[key] = export(network, x)
        return files[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtimes, "onnx_model", exported)
        yield


@functools.cache
def short_network(revision):
    torch.manual_seed(3)
    return settled(short(build_model("s2fpn_lite", revision=revision, num_classes=5)))


@pytest.mark.parametrize("revision", ["v1", "v2"])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_runtimes(runtime, revision):
    pytest.importorskip(runtime, reason=f"needs the extra [{runtime}]")
    model = short_network(revision)
    fast = optimized(model, runtime)
    assert_same_logits(model, fast, sizes=[(64, 96)], count=1)
    assert_same_logits(model, fast, sizes=[(45, 71)])


@pytest.mark.parametrize(
    ("runtime", "precision"), [("onnxruntime", "int8"), ("openvino", "int8"), ("openvino", "bf16")]
)
def test_lower_precisions_predict_the_same_classes(runtime, precision):
    package = pytest.importorskip(runtime, reason=f"needs the extra [{runtime}]")
    model = load_model("s2fpn_lite-camvid")
    x = model.preprocess(scenes()[:5, :, :192, :256])
    with kept_signal_stack():
        capabilities = package.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") if precision == "bf16" else ()
    if precision == "bf16" and "BF16" not in capabilities:
        with pytest.raises(ValueError, match="no bfloat16"):
            optimize_for_inference(model, x, runtime, precision=precision)
        return
    fast = optimize_for_inference(model, x[:4], runtime, precision=precision, tolerance=1.0, verbose=False)
    assert fast.max_difference > 1e-2, "computed in float32"
    unseen = x[4:]  # another batch size as well
    assert (fast(unseen).argmax(1) == logits(model, unseen).argmax(1)).float().mean() > 0.95


def test_compile():
    """A network with one level of each kind: the compiler needs about a second for every layer of its own size."""
    torch.manual_seed(3)
    model, whole = (build_model("s2fpn_lite", num_classes=5, **off) for off in ({"apf": False, "gfu": False}, {}))
    model.apf4, model.gfu1 = whole.apf4, whole.gfu1
    settled(short(model))
    options = {"force_disable_caches": True, "cpp.vec_isa_ok": True}  # the latter: no test programs
    with torch._inductor.config.patch(options):
        fast, code = run_and_get_code(optimized, model, "compile")
    assert "convolution_pointwise" in "".join(code), "weights are not packed: freezing did not happen"
    assert_same_logits(model, fast, sizes=[(64, 96)], count=1)


def test_the_original_is_unchanged():
    model = trained_like()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimized(model)
    assert len(model.auxiliary) == 4
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_bf16_reports_its_difference():
    fast = optimized(trained_like(), precision="bf16")
    assert fast.max_difference > 1e-4
    assert fast(torch.randn(1, 3, 64, 96)).dtype == torch.float32


def test_preprocess():
    model = trained_like()
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
def test_unknown_backends_and_precisions(arguments, error):
    with pytest.raises(ValueError, match=error):
        optimized(trained_like(), **arguments)


def test_optimized_models_are_rejected():
    fast = optimized(trained_like())
    assert isinstance(fast, OptimizedModel)
    with pytest.raises(TypeError, match="made by build_model, got OptimizedModel"):
        optimize_for_inference(fast, torch.randn(1, 3, 64, 96))


def test_a_wrong_transformation_is_rejected(monkeypatch):
    def broken(model):
        copied = simplify(model)
        nn.init.zeros_(copied.head.weight)
        return copied

    monkeypatch.setattr(optimize, "simplify", broken)
    with pytest.raises(RuntimeError, match="gives other logits than the model"):
        optimized(trained_like())


def count_calls(x):
    """2 x, and how often it was computed."""
    count_calls.number += 1
    return 2 * x


@pytest.fixture
def recorded(monkeypatch):
    """Replaces torch's recorder by one that, like it, writes each result into the same memory."""

    def record(run, arguments):
        result = run(*arguments)
        return lambda x: result.copy_(2 * x)

    count_calls.number = 0
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", record)


def test_cuda_graphs_record_each_shape_once_and_copy_the_result(recorded):
    replay = optimize.cuda_graphs(count_calls)
    first = replay(torch.ones(2, 3))
    assert torch.equal(replay(torch.full((2, 3), 5.0)), torch.full((2, 3), 10.0))
    assert torch.equal(first, torch.full((2, 3), 2.0)), "a later replay changed an earlier result"
    assert torch.equal(replay(torch.ones(4)), torch.full((4,), 2.0))
    assert count_calls.number == 2


@pytest.mark.cuda
def test_cuda_graphs_on_a_gpu():
    replay = optimize.cuda_graphs(lambda x: x.relu() + 1)
    with torch.inference_mode():
        for shape in ((4, 5), (4, 5), (2, 3)):
            x = torch.randn(shape).cuda()
            assert torch.equal(replay(x), x.relu() + 1)


@pytest.mark.cuda
def test_optimized_model_on_a_gpu():
    model = copy.deepcopy(trained_like()).cuda()
    x = model.preprocess(pictures(count=2))
    fast = optimize_for_inference(model, x, precision="fp16", verbose=False)
    assert (fast(x).argmax(1) == logits(model, x).argmax(1)).float().mean() > 0.95
