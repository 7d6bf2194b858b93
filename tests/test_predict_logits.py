"""Prediction: several views against the same thing written out by hand."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from s2fpn_lib.evaluate import predict_logits, window_starts, window_weights
from s2fpn_lib.model import build_model


class Pointwise(nn.Module):
    """Classifies every pixel by its colour alone: no view or window can change it."""

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.Conv2d(8, 4, 1))

    def preprocess(self, images):
        return images.float() / 255

    def forward(self, x):
        return self.net(x)


class Local(Pointwise):
    """Looks around and is not symmetric: views do change it."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 6, 5, padding=2), nn.ReLU(), nn.Conv2d(6, 4, 5, padding=2))


@pytest.fixture
def images():
    return torch.randint(0, 256, (2, 3, 40, 56), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_one_view_is_the_networks_own_logits(images):
    model = build_model("s2fpn_lite", num_classes=5).eval()
    expected = model(model.preprocess(images))
    torch.testing.assert_close(predict_logits(model, images), expected, atol=1e-6, rtol=0)


def test_flip_averages_probabilities(images):
    model = Local().eval()
    x = model.preprocess(images)
    expected = (model(x).softmax(1) + model(x.flip(-1)).flip(-1).softmax(1)) / 2
    got = predict_logits(model, images, flip=True)
    torch.testing.assert_close(got.softmax(1), expected)
    torch.testing.assert_close(predict_logits(model, images.flip(-1), flip=True).flip(-1), got, atol=1e-5, rtol=0)


def test_scales_average_resized_probabilities(images):
    model = Local().eval()
    x = model.preprocess(images)
    parts = []
    for size in ((20, 28), (40, 56), (60, 84)):
        logits = model(F.interpolate(x, size, mode="bilinear", antialias=size[0] < 40))
        parts.append(F.interpolate(logits, (40, 56), mode="bilinear", antialias=size[0] > 40).softmax(1))
    got = predict_logits(model, images, scales=(0.5, 1.0, 1.5))
    torch.testing.assert_close(got.softmax(1), torch.stack(parts).mean(0))


@pytest.mark.parametrize("window", [(40, 56), (400, 500)])
def test_a_window_that_covers_the_image_is_plain(images, window):
    model = Local()
    torch.testing.assert_close(predict_logits(model, images, window=window), predict_logits(model, images))


@pytest.mark.parametrize("window", [(16, 16), (40, 20), (7, 56)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
def test_windows_leave_a_pointwise_model_unchanged(images, window, overlap):
    model = Pointwise()
    got = predict_logits(model, images, window=window, overlap=overlap)
    torch.testing.assert_close(got.softmax(1), predict_logits(model, images).softmax(1))


@pytest.mark.parametrize(("length", "window", "overlap"), [(100, 30, 0.5), (97, 32, 0.25), (64, 64, 0), (65, 64, 0)])
def test_window_starts_cover_with_the_overlap_asked_for(length, window, overlap):
    starts = window_starts(length, window, overlap)
    assert starts[0] == 0
    assert starts[-1] + window == length
    assert all(b - a <= window * (1 - overlap) for a, b in itertools.pairwise(starts))


def test_window_weights_fall_off_to_the_rim():
    weights = window_weights(5, 8)
    assert weights.min() == weights[0].max() == weights[:, -1].max() == 1
    assert weights.max() == weights[2, 3] == 3


def test_modes_gradients_and_autocast_stay_outside(images):
    model = Local().train()
    model.net[1].eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = predict_logits(model, images)
    assert inside.dtype == torch.float32
    assert model.training
    assert not model.net[1].training
    torch.testing.assert_close(inside, predict_logits(model, images), atol=0, rtol=0)
    low = predict_logits(model, images, amp="bf16")
    assert low.dtype == torch.float32
    assert 0 < (low - inside).abs().max() < 0.1
    assert not inside.requires_grad


def test_dropout_is_off(images):
    model = Pointwise().train()
    torch.testing.assert_close(predict_logits(model, images), predict_logits(model, images), atol=0, rtol=0)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"scales": ()}, ValueError, "at least one scale"),
        ({"scales": (0.0,)}, ValueError, "above 0"),
        ({"window": (16, 0)}, ValueError, "height, width"),
        ({"overlap": 1.0}, ValueError, "below 1"),
        ({"amp": "half"}, ValueError, "bf16, fp16"),
        ({"images": torch.zeros(1, 3, 8, 8)}, TypeError, "uint8"),
        ({"images": torch.zeros(3, 8, 8, dtype=torch.uint8)}, ValueError, r"\(B, 3, H, W\)"),
    ],
)
def test_wrong_arguments_say_what_to_do(images, change, error, words):
    arguments = {"images": images, **change}
    with pytest.raises(error, match=words):
        predict_logits(Pointwise(), **arguments)
