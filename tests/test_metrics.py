"""Confusion matrix against torchmetrics, closed forms, and a loop over pixels; boundary score against brute force."""

import math

import numpy as np
import pytest
import torch
import torchmetrics.functional.classification as reference

from s2fpn_lib.metrics import (
    BoundaryScore,
    Calibration,
    ConfusionMatrix,
    UnknownIdError,
    boundary_mask,
    class_ids,
    class_totals,
    dilate_bits,
    iou_from_totals,
)

K, IGNORE = 11, 11


def maps(seed: int = 0, shape=(3, 37, 53), classes: int = K, ignore: int = IGNORE):
    """Labels with ignored pixels and predictions that agree with about two thirds of them."""
    g = torch.Generator().manual_seed(seed)
    label = torch.randint(0, classes + 1, shape, generator=g, dtype=torch.uint8)
    other = torch.randint(0, classes, shape, generator=g, dtype=torch.uint8)
    agree = (torch.rand(shape, generator=g) < 0.66) & (label < classes)
    pred = torch.where(agree, label, other)
    return pred, torch.where(label == classes, torch.full_like(label, ignore), label)


def looped(pred, label, classes: int = K, ignore: int = IGNORE) -> np.ndarray:
    out = np.zeros((classes, classes), np.int64)
    for p, t in zip(pred.numpy().ravel(), label.numpy().ravel(), strict=True):
        if t != ignore:
            out[t, p] += 1
    return out


@pytest.mark.parametrize(("classes", "ignore"), [(11, 11), (11, 0), (2, 255), (150, 255), (253, 255)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_counts_equal_a_pixel_loop(classes, ignore, dtype):
    pred, label = maps(classes=classes, ignore=ignore)
    matrix = ConfusionMatrix(classes, ignore)
    matrix.update(pred.to(dtype), label.to(dtype))
    assert matrix.matrix.dtype == torch.int64
    np.testing.assert_array_equal(matrix.matrix.numpy(), looped(pred, label, classes, ignore))


@pytest.mark.parametrize("ignore", [-100, 300])
def test_ignored_ids_outside_a_byte(ignore):
    pred, label = maps()
    wide = torch.where(label == IGNORE, ignore, label.long())
    matrix = ConfusionMatrix(K, ignore)
    matrix.update(pred, wide)
    np.testing.assert_array_equal(matrix.matrix.numpy(), looped(pred, label))
    assert matrix.update(pred, label.clamp(max=K - 1)).sum() == label.numel()  # no uint8 label is ignored


def test_update_returns_one_matrix_per_image():
    pred, label = maps()
    matrix = ConfusionMatrix(K, IGNORE)
    each = matrix.update(pred, label)
    for i in range(len(pred)):
        np.testing.assert_array_equal(each[i].numpy(), looped(pred[i], label[i]))
    torch.testing.assert_close(each.sum(0), matrix.matrix)


def test_several_updates_equal_one():
    whole, streamed = ConfusionMatrix(K, IGNORE), ConfusionMatrix(K, IGNORE)
    pred, label = maps(1)
    whole.update(pred, label)
    streamed.update(pred[0], label[0])
    streamed.update(pred[1:], label[1:])
    torch.testing.assert_close(streamed.matrix, whole.matrix)


def test_logits_count_like_their_ids():
    logits = torch.randn(2, K, 24, 31)
    _, label = maps(shape=(2, 24, 31))
    ids, scores = ConfusionMatrix(K, IGNORE), ConfusionMatrix(K, IGNORE)
    ids.update(logits.argmax(1), label)
    scores.update(logits, label)
    torch.testing.assert_close(ids.matrix, scores.matrix)
    assert class_ids(logits).equal(logits.argmax(1))


def test_scores_agree_with_torchmetrics():
    pred, label = maps(5)
    label[label == 4] = 3  # class 4 is predicted but never labeled
    matrix = ConfusionMatrix(K, IGNORE)
    matrix.update(pred, label)
    keep = label != IGNORE
    p, t = pred[keep].long(), label[keep].long()
    options = {"num_classes": K, "average": "none"}
    iou = reference.multiclass_jaccard_index(p, t, **options)
    torch.testing.assert_close(matrix.iou().float(), iou, atol=1e-6, rtol=0)
    recall = reference.multiclass_recall(p, t, **options)
    torch.testing.assert_close(matrix.recall().nan_to_num(0).float(), recall, atol=1e-6, rtol=0)
    precision = reference.multiclass_precision(p, t, **options)
    torch.testing.assert_close(matrix.precision().float(), precision, atol=1e-6, rtol=0)
    accuracy = reference.multiclass_accuracy(p, t, num_classes=K, average="micro")
    assert matrix.pixel_accuracy() == pytest.approx(accuracy.item(), abs=1e-6)
    weighted = reference.multiclass_jaccard_index(p, t, num_classes=K, average="weighted")
    assert matrix.frequency_weighted_iou() == pytest.approx(weighted.item(), abs=1e-6)


def test_scores_in_closed_form():
    #  class 0: TP 3, one of its pixels predicted 1, one pixel of 2 predicted 0 -> 3/5; class 1: TP 2, FP 1 -> 2/3;
    #  class 2: no true positive -> 0; class 3: predicted once where 1 is labeled; class 4: nowhere -> NaN
    label = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 2, 9]])
    pred = torch.tensor([[0, 0, 0, 1, 1, 1, 3, 0, 3]])
    matrix = ConfusionMatrix(5, 9)
    matrix.update(pred, label)
    iou = matrix.iou()
    np.testing.assert_allclose(iou.numpy(), [3 / 5, 2 / 4, 0, 0, np.nan])
    assert matrix.miou() == pytest.approx((3 / 5 + 2 / 4) / 4)
    assert matrix.published_miou() == pytest.approx((3 / 5 + 2 / 4) / 2)
    assert matrix.pixel_accuracy() == 5 / 8
    assert matrix.class_accuracy() == pytest.approx((3 / 4 + 2 / 3 + 0) / 3)
    assert matrix.frequency_weighted_iou() == pytest.approx(4 / 8 * 3 / 5 + 3 / 8 * 2 / 4)
    torch.testing.assert_close(iou_from_totals(class_totals(matrix.matrix)), iou, equal_nan=True)


def test_scores_without_scored_pixels_are_nan():
    matrix = ConfusionMatrix(3, 255)
    matrix.update(torch.zeros(1, 4, 4, dtype=torch.uint8), torch.full((1, 4, 4), 255, dtype=torch.uint8))
    assert math.isnan(matrix.miou())
    assert math.isnan(matrix.published_miou())
    assert math.isnan(matrix.pixel_accuracy())


def test_counts_are_exact_beyond_float32():
    matrix = ConfusionMatrix(2)
    matrix.counts[0, 0] = 2**24
    matrix.update(torch.zeros(1, 1, 1, dtype=torch.uint8), torch.zeros(1, 1, 1, dtype=torch.uint8))
    assert matrix.matrix[0, 0] == 2**24 + 1


@pytest.mark.parametrize(
    ("dtype", "unknown"), [(torch.uint8, K), (torch.uint8, 255), (torch.int64, -1), (torch.int64, 256)]
)
def test_unknown_ids_raise_and_are_not_counted(dtype, unknown):
    pred, label = maps()
    pred, label = pred.to(dtype), label.to(dtype)
    matrix = ConfusionMatrix(K, IGNORE)
    bad = pred.clone()
    bad[0, 0, :4] = unknown
    label[0, 0, :4] = 2
    with pytest.raises(UnknownIdError, match=r"4 predicted pixels hold ids outside 0\.\.10"):
        matrix.update(bad, label)
    assert matrix.matrix.sum() == 0
    bad_label = label.clone()
    bad_label[0, 0, :4] = unknown if unknown != IGNORE else 12
    with pytest.raises(UnknownIdError, match="4 label pixels"):
        matrix.update(pred, bad_label)


def test_predictions_at_ignored_pixels_do_not_matter():
    _, label = maps()
    matrix = ConfusionMatrix(K, IGNORE)
    matrix.update(label, label)  # holds the ignored id as a "prediction", at ignored pixels only
    assert matrix.miou() == 1


def test_wrong_shapes():
    matrix = ConfusionMatrix(K, IGNORE)
    with pytest.raises(ValueError, match="resize the logits to the label"):
        matrix.update(torch.zeros(1, 4, 4, dtype=torch.long), torch.zeros(1, 8, 8, dtype=torch.long))
    with pytest.raises(ValueError, match="19 channels"):
        matrix.update(torch.zeros(1, 19, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long))
    with pytest.raises(TypeError, match="must be integers"):
        matrix.update(torch.zeros(1, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long))


@pytest.mark.cuda
def test_cuda_counts_without_host_sync():
    pred, label = maps(shape=(3, 64, 96))
    expected = looped(pred, label)
    pred, label = pred.cuda(), label.cuda()
    matrix = ConfusionMatrix(K, IGNORE)
    matrix.counts = matrix.counts.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        matrix.update(pred, label)
        matrix.update(pred.long(), label)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    np.testing.assert_array_equal(matrix.matrix.cpu().numpy(), 2 * expected)


def brute_boundaries(ids, scored, c):
    """Coordinates of class c's boundary pixels, by the definition."""
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


@pytest.mark.parametrize("tolerance", [0, 1, 1.5, 3.2, 60])
def test_boundary_score_equals_brute_force(tolerance):
    label, pred = blobs(0, ignore=255), blobs(10)
    pred[:13] = np.where(label[:13] == 255, pred[:13], label[:13])
    score = BoundaryScore(5, 255, tolerance)
    f = score.update(torch.tensor(pred)[None], torch.tensor(label)[None])
    np.testing.assert_allclose(f[0].numpy(), brute_f(pred, label, 255, 5, tolerance), atol=1e-12)


def test_boundary_score_of_uint8_ids_and_many_classes():
    label, pred = blobs(3, classes=40, ignore=255), blobs(4, classes=40)
    score = BoundaryScore(40, 255, 2)
    f = score.update(torch.tensor(pred, dtype=torch.uint8)[None], torch.tensor(label, dtype=torch.uint8)[None])
    np.testing.assert_allclose(f[0].numpy(), brute_f(pred, label, 255, 40, 2), atol=1e-12)


def test_boundary_score_is_a_mean_over_images():
    pairs = [(blobs(s), blobs(s + 20)) for s in range(4)]
    pairs[0][0][:], pairs[0][1][:] = 0, 0  # an image of one class has no boundary at all
    expected = np.array([brute_f(p, t, -1, 5, 2) for p, t in pairs])
    score = BoundaryScore(5, None, 2)
    for p, t in pairs:
        score.update(torch.tensor(p)[None], torch.tensor(t)[None])
    np.testing.assert_allclose(score.per_class().numpy(), np.nanmean(expected, 0), atol=1e-12)
    assert score.mean() == pytest.approx(np.nanmean(expected[1:], 1).mean())


def test_boundary_score_of_shifted_predictions():
    label = torch.zeros(1, 40, 60, dtype=torch.long)
    label[:, :, 30:] = 1
    score = BoundaryScore(2, None, 3)
    assert score.update(label, label).tolist() == [[1, 1]]
    assert score.update(label.roll(3, 2)[:, :, 3:], label[:, :, 3:]).tolist() == [[1, 1]]
    assert score.update(label.roll(4, 2)[:, :, 4:], label[:, :, 4:]).tolist() == [[0, 0]]


def test_unlabeled_regions_have_no_boundary():
    label = torch.zeros(1, 20, 20, dtype=torch.uint8)
    label[:, 5:12, 5:12] = 255
    scored = label != 255
    assert not boundary_mask(label, scored).any()


def test_default_tolerance_is_the_papers():
    label = torch.zeros(1, 120, 160, dtype=torch.uint8)  # 0.0075 * 200 = 1.5 pixels
    label[:, :, 70:] = 1
    near, far = label.roll(1, 2), label.roll(2, 2)
    near[:, :, :10] = far[:, :, :10] = 0
    assert BoundaryScore(2).update(near, label).tolist() == [[1, 1]]
    assert BoundaryScore(2).update(far, label).tolist() == [[0, 0]]


@pytest.mark.parametrize("radius", [0, 0.9, 1.42, 5])
def test_dilation_is_a_euclidean_disc(radius):
    bits = torch.zeros(1, 15, 15, dtype=torch.int32)
    bits[0, 7, 7] = 1 << 5
    bits[0, 0, 14] = 1 << 2
    out = dilate_bits(bits, radius)[0]
    for y in range(15):
        for x in range(15):
            assert bool(out[y, x] & 32) == (math.hypot(y - 7, x - 7) <= radius)
            assert bool(out[y, x] & 4) == (math.hypot(y, x - 14) <= radius)


@pytest.mark.parametrize("bins", [10, 20])
def test_calibration_error_agrees_with_torchmetrics(bins):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(4, 5, 17, 23, generator=generator)
    label = torch.randint(0, 6, (4, 17, 23), generator=generator, dtype=torch.uint8)  # 5: ignored
    calibration = Calibration(ignore_index=5)
    for batch in zip(logits.split(3), label.split(3), strict=True):  # streaming
        calibration.update(*batch)
    options = {"num_classes": 5, "n_bins": bins, "norm": "l1", "ignore_index": 5}
    expected = reference.multiclass_calibration_error(logits, label.long(), **options)
    assert calibration.error(bins) == pytest.approx(expected.item(), abs=1e-5)
    assert calibration.table(bins)[:, 0].sum() == (label < 5).sum()


def test_calibration_by_hand():
    sure = torch.tensor([0.95, 0.05]).log()
    unsure = torch.tensor([0.4, 0.6]).log()
    logits = torch.stack([sure, sure, sure, unsure, unsure], 1)[None, :, None]  # (1, 2, 1, 5)
    calibration = Calibration()
    calibration.update(logits, torch.tensor([[[0, 0, 1, 1, 1]]]))
    table = calibration.table(2)
    assert table[0].isnan().tolist() == [False, True, True]  # no pixel is below 0.5
    assert table[1].tolist() == pytest.approx([5, (3 * 0.95 + 2 * 0.6) / 5, 4 / 5])
    table = calibration.table(4)
    assert table[2].tolist() == pytest.approx([2, 0.6, 1])
    assert table[3].tolist() == pytest.approx([3, 0.95, 2 / 3])
    assert calibration.error(4) == pytest.approx(2 / 5 * 0.4 + 3 / 5 * (0.95 - 2 / 3))
