"""int8: what it costs is measured and stated, and layers that it would harm stay in float.

Signals are handled after OpenVINO's models were created and deleted, in any order.
"""

import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from s2fpn_lib.checkpoint import load_model
from s2fpn_lib.data.roadscenes.dataset import RoadScenes
from s2fpn_lib.evaluate import evaluate
from s2fpn_lib.inference import optimize, optimize_for_inference, runtimes
from s2fpn_lib.inference.optimize import calibration_images
from s2fpn_lib.inference.runtimes import RuntimeRunner, accurate_part

LAYERS = [f"layer{i}" for i in range(20)]


def scenes(split):
    return RoadScenes(split, count=10)


def test_all_layers_are_quantized_where_nothing_is_lost():
    calls = []
    assert accurate_part(LAYERS, lambda part: calls.append(part) or 0.01, 0.01) == LAYERS
    assert calls == [LAYERS]


def test_harmful_layers_are_found_by_halving():
    harms = {"layer3": 0.5, "layer17": 0.02}
    calls = []

    def changed(part):
        calls.append(part)
        return sum(harms.get(layer, 0.0001) for layer in part)

    assert accurate_part(LAYERS, changed, 0.01) == [layer for layer in LAYERS if layer not in harms]
    assert len(calls) <= 20


def test_small_losses_that_add_up_leave_the_worst_layers_in_float():
    harms = {layer: 0.004 if layer in ("layer5", "layer6", "layer12") else 0.0001 for layer in LAYERS}
    quantized = accurate_part(LAYERS, lambda part: sum(harms[layer] for layer in part), 0.01)
    assert 0 < sum(harms[layer] for layer in quantized) <= 0.01
    assert len(quantized) >= 16


def test_the_search_is_bounded(monkeypatch):
    monkeypatch.setattr(runtimes, "MAX_TRIALS", 5)
    calls = []
    assert accurate_part(LAYERS, lambda part: calls.append(part) or 1.0, 0.01) == []
    assert len(calls) == 5


class Unbalanced(nn.Sequential):
    """Three convolutions. The first one's channel 0 is 2000 times too large, and the second one undoes it.

    One range for all channels of the second one's input then leaves nothing of the others.
    """

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.append(nn.Conv2d(8, 4, 1))
        self.mean = self.std = torch.ones(3)
        with torch.no_grad():
            self[0].weight[0] *= 2000
            self[0].bias[0] *= 2000
            self[2].weight[:, 0] /= 2000
            self[4].bias -= self(torch.randn(1, 3, 64, 80)).mean((0, 2, 3))  # so that each class occurs


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_harmful_layer_stays_in_float(runtime):
    pytest.importorskip(runtime, reason=f"needs the extra [{runtime}]")
    pytest.importorskip("onnxscript", reason="needs the extra [onnx]")
    network, x = Unbalanced().eval(), torch.randn(2, 3, 64, 80)
    blind = RuntimeRunner(network, x, runtime, "int8", tolerance=1.0)
    careful = RuntimeRunner(network, x, runtime, "int8", tolerance=0.05)
    assert blind.float_layers == []
    assert blind.changed > 0.1
    assert "2" in careful.float_layers
    assert "4" not in careful.float_layers
    assert careful.changed <= 0.05
    with torch.inference_mode():
        expected = network(x).argmax(1)
    found = torch.cat([careful(one) for one in x.split(1)]).argmax(1)
    assert float((found != expected).float().mean()) == pytest.approx(careful.changed, abs=1e-3)


class Coarse(nn.Module):
    """In place of a runner: the network with logits rounded to whole numbers."""

    changed, float_layers, milliseconds = 0.004, [], (20.0, 60.0)

    def __init__(self, network, example, *_):
        super().__init__()
        self.network, self.example, self.preprocess = network, example, network.preprocess

    def forward(self, x):
        return self.network(x).round()


def test_the_cost_is_measured_and_stated(monkeypatch, capsys):
    monkeypatch.setattr(optimize, "RuntimeRunner", Coarse)
    model, val = load_model("s2fpn_lite-camvid"), scenes("val")
    example = model.preprocess(val[5][0][None, :, :64, :96])
    fast = optimize_for_inference(model, example, "openvino", precision="int8", scored=val, limit=2)
    both = (evaluate(m, val, limit=2, batch_size=1, progress=False) for m in (model, Coarse(model, example)))
    before, after = (100 * evaluation.confusion.miou() for evaluation in both)
    assert abs(before - after) > 1e-3
    assert fast.miou_cost == pytest.approx(before - after, abs=1e-2)
    printed = capsys.readouterr().out
    assert f"int8 costs {fast.miou_cost:z.1f} points of mIoU on 2 images of roadscenes val" in printed
    assert "0.40 % of the pixels of 1 calibration images change their class" in printed
    assert "layers in float: none" in printed


def stated(monkeypatch, milliseconds):
    model = SimpleNamespace(
        changed=0.004, float_layers=["head"], milliseconds=milliseconds, example=torch.zeros(8, 3, 4, 4)
    )
    monkeypatch.setattr(optimize, "RuntimeRunner", lambda *_: model)
    fast = SimpleNamespace(backend="onnxruntime", miou_cost=float("nan"))
    optimize._state_cost(fast, None, model, None, None)
    return fast.statement


def test_an_unknown_cost_and_the_layers_in_float_are_stated(monkeypatch):
    statement = stated(monkeypatch, (20.0, 60.0))
    assert "its cost in mIoU is not known" in statement
    assert "0.40 % of the pixels of 8 calibration images" in statement
    assert "layers in float: head" in statement
    assert "3.0 times as fast as float32" in statement


def test_int8_that_is_not_faster_is_a_warning(monkeypatch):
    with pytest.warns(UserWarning, match=r"does not pay off with onnxruntime here, use float32: 62 ms.*\(55 ms\)"):
        stated(monkeypatch, (62.0, 55.0))


def test_calibration_images_that_are_scored_are_refused():
    model, val, train = load_model("s2fpn_lite-camvid"), scenes("val"), scenes("train")
    assert calibration_images(model, train, val).shape == (8, 3, *train.protocol.size)
    with pytest.raises(ValueError, match="share images"):
        calibration_images(model, val, val)
    example = model.preprocess(torch.stack([train[0][0], val[1][0]]))
    with pytest.raises(ValueError, match=f"{val.names[1]} of val is scored and gives the ranges"):
        calibration_images(model, example, val)
    assert calibration_images(model, example[:1], val) is not None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
def test_threads_of_pytorch_do_not_wait_while_openvino_runs():
    pytest.importorskip("openvino", reason="needs the extra [openvino]")
    pytest.importorskip("onnxscript", reason="needs the extra [onnx]")
    x = torch.rand(1, 3, 32, 32)
    run = RuntimeRunner(Unbalanced().eval(), x, "openvino", "float32", 1.0)

    def threads():
        return {path.name for path in Path("/proc/self/task").iterdir()}

    torch.set_num_threads(3)
    try:
        run(x)
        before = threads()
        torch.ones(1 << 20).add_(1)
        started = threads() - before
        assert len(started) == 2
        run(x)
        deadline = time.monotonic() + 10
        while threads() & started and time.monotonic() < deadline:
            time.sleep(0.01)  # a thread ends soon after it was told to
        assert not threads() & started
    finally:
        torch.set_num_threads(1)


CREATE_AND_DELETE_MODELS = """
    import faulthandler, gc, signal, subprocess
    import torch
    from s2fpn_lib.inference.runtimes import RuntimeRunner

    faulthandler.enable()  # gives the thread a signal stack, as pytest does
    signal.signal(signal.SIGCHLD, lambda *_: print("handled", flush=True))
    network, example = torch.nn.Conv2d(3, 3, 3), torch.rand(1, 3, 32, 32)
    network.mean = network.std = torch.zeros(3)
    models = []
    for precision in ("float32", "bf16", "float32"):
        try:
            models.append(RuntimeRunner(network, example, "openvino", precision, 1.0))
        except ValueError as error:  # a processor without bfloat16
            print(error)
    while models:
        models.pop(0)(example)
        gc.collect()
    subprocess.run(["true"], check=True)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the plugin installs signal stacks on Linux")
def test_signal_after_models_were_deleted_in_order_of_creation():
    script = textwrap.dedent(CREATE_AND_DELETE_MODELS)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "handled" in result.stdout
