"""The published implementation computes the same as the workbench."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from s2fpn_lib.benchmark import published as module
from s2fpn_lib.benchmark.published import PublishedInference, eval_fps
from s2fpn_lib.model import build_model


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model("s2fpn_lite", num_classes=5).eval().to(memory_format=torch.channels_last)


@pytest.mark.parametrize("grad", [True, False])
def test_logits_equal_the_models(model, grad):
    x = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        expected = model(x)
    torch.testing.assert_close(PublishedInference(model, grad=grad)(x), expected, rtol=1e-4, atol=1e-5)


def test_inference_resizes_five_maps_and_records_a_graph(model, monkeypatch):
    sizes, recorded = [], []
    interpolate = F.interpolate

    def watched(x, size, **options):
        sizes.append((tuple(size), options["align_corners"]))
        recorded.append(torch.is_grad_enabled())
        return interpolate(x, size=size, **options)

    monkeypatch.setattr(F, "interpolate", watched)
    run = PublishedInference(model)
    assert not run(torch.zeros(1, 3, 64, 96)).requires_grad
    assert sizes.count(((64, 96), True)) == 5
    assert all(recorded)
    assert all(p.is_contiguous() for p in run.model.parameters())


def test_eval_fps_counts_images_over_the_clock(monkeypatch):
    calls, clock = [], iter([0.0, 10.0, 14.0])
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    assert eval_fps(calls.append, torch.zeros(2, 3, 4, 4), warmup=3, calls=8) == 8 * 2 / 4.0
    assert len(calls) == 3 + 8
