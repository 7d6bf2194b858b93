"""The boundary F-score against a brute-force reading of its definition."""

import math

import numpy as np
import pytest
import torch

from s2fpn_lib.metrics import BoundaryScore, boundary_mask, default_tolerance, dilate_bits


def brute_boundaries(ids, scored, c):
    """Coordinates of class c's boundary pixels, straight from the definition."""
    height, width = ids.shape
    found = []
    for y in range(height):
        for x in range(width):
            if ids[y, x] != c or not scored[y, x]:
                continue
            around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
            inside = [(v, u) for v, u in around if 0 <= v < height and 0 <= u < width]
            if any(scored[v, u] and ids[v, u] != c for v, u in inside):
                found.append((y, x))
    return np.array(found, float).reshape(-1, 2)


def brute_f(pred, label, ignore, classes, tolerance):
    scored = label != ignore
    out = np.full(classes, np.nan)
    for c in range(classes):
        a, b = brute_boundaries(pred, scored, c), brute_boundaries(label, scored, c)
        if len(a) == 0 and len(b) == 0:
            continue
        if len(a) == 0 or len(b) == 0:
            out[c] = 0
            continue
        distance = np.hypot(*(a[:, None] - b[None]).transpose(2, 0, 1))
        p, r = (distance.min(1) <= tolerance).mean(), (distance.min(0) <= tolerance).mean()
        out[c] = 2 * p * r / (p + r) if p + r else 0
    return out


def blobs(seed, shape=(26, 34), classes=5, ignore=None):
    """Random regions a few pixels wide."""
    rng = np.random.default_rng(seed)
    high = classes + (ignore is not None)
    small = rng.integers(0, high, (shape[0] // 4 + 1, shape[1] // 4 + 1))
    ids = np.kron(small, np.ones((4, 4), int))[: shape[0], : shape[1]]
    ids = np.where(rng.random(shape) < 0.03, rng.integers(0, high, shape), ids)
    return np.where(ids == classes, ignore, ids) if ignore is not None else ids


@pytest.mark.parametrize("tolerance", [0, 1, 1.5, 2, 3.2, 4.5, 60])
@pytest.mark.parametrize("seed", [0, 1])
def test_equals_brute_force(tolerance, seed):
    label, pred = blobs(seed, ignore=255), blobs(seed + 10)
    pred[:13] = np.where(label[:13] == 255, pred[:13], label[:13])
    score = BoundaryScore(5, 255, tolerance)
    f = score.update(torch.tensor(pred)[None], torch.tensor(label)[None])
    np.testing.assert_allclose(f[0].numpy(), brute_f(pred, label, 255, 5, tolerance), atol=1e-12)


def test_uint8_and_many_classes():
    label, pred = blobs(3, classes=40, ignore=255), blobs(4, classes=40)
    score = BoundaryScore(40, 255, 2)
    f = score.update(torch.tensor(pred, dtype=torch.uint8)[None], torch.tensor(label, dtype=torch.uint8)[None])
    np.testing.assert_allclose(f[0].numpy(), brute_f(pred, label, 255, 40, 2), atol=1e-12)


def test_streaming_means_over_images():
    pairs = [(blobs(s), blobs(s + 20)) for s in range(4)]
    pairs[0][0][:], pairs[0][1][:] = 0, 0  # an image of one class has no boundary at all
    expected = np.array([brute_f(p, t, -1, 5, 2) for p, t in pairs])
    score = BoundaryScore(5, None, 2)
    for p, t in pairs:
        score.update(torch.tensor(p)[None], torch.tensor(t)[None])
    np.testing.assert_allclose(score.per_class().numpy(), np.nanmean(expected, 0), atol=1e-12)
    assert score.mean() == pytest.approx(np.nanmean(expected[1:], 1).mean())


def test_perfect_prediction_scores_one_and_a_shift_beyond_the_tolerance_less():
    label = torch.zeros(1, 40, 60, dtype=torch.long)
    label[:, :, 30:] = 1
    score = BoundaryScore(2, None, 3)
    assert score.update(label, label).tolist() == [[1, 1]]
    assert score.update(label.roll(3, 2)[:, :, 3:], label[:, :, 3:]).tolist() == [[1, 1]]
    assert score.update(label.roll(4, 2)[:, :, 4:], label[:, :, 4:]).tolist() == [[0, 0]]


def test_unlabelled_regions_make_no_boundary():
    label = torch.zeros(1, 20, 20, dtype=torch.uint8)
    label[:, 5:12, 5:12] = 255
    scored = label != 255
    assert not boundary_mask(label, scored).any()


def test_the_default_tolerance_is_the_papers():
    assert default_tolerance(360, 480) == pytest.approx(0.0075 * 600)
    label = torch.zeros(1, 360, 480, dtype=torch.uint8)
    label[:, :, 200:] = 1
    near, far = label.roll(4, 2), label.roll(5, 2)
    near[:, :, :10] = far[:, :, :10] = 0
    assert BoundaryScore(2).update(near, label).tolist() == [[1, 1]]
    assert BoundaryScore(2).update(far, label).tolist() == [[0, 0]]


@pytest.mark.parametrize("radius", [0, 0.9, 1, 1.42, 2.3, 5])
def test_dilation_is_a_euclidean_disc(radius):
    bits = torch.zeros(1, 15, 15, dtype=torch.int32)
    bits[0, 7, 7] = 1 << 5
    bits[0, 0, 14] = 1 << 2
    out = dilate_bits(bits, radius)[0]
    for y in range(15):
        for x in range(15):
            assert bool(out[y, x] & 32) == (math.hypot(y - 7, x - 7) <= radius)
            assert bool(out[y, x] & 4) == (math.hypot(y, x - 14) <= radius)
