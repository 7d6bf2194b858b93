"""The confusion matrix against torchmetrics, closed forms and a loop over pixels."""

import math

import numpy as np
import pytest
import torch
import torchmetrics.functional.classification as reference

from s2fpn_lib.metrics import ConfusionMatrix, UnknownIdError, class_ids, class_totals, iou_from_totals

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


@pytest.mark.parametrize(("classes", "ignore"), [(11, 11), (19, 255), (2, 255), (150, 255)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_counts_equal_a_pixel_loop(classes, ignore, dtype):
    pred, label = maps(classes=classes, ignore=ignore)
    matrix = ConfusionMatrix(classes, ignore)
    matrix.update(pred.to(dtype), label.to(dtype))
    assert matrix.matrix.dtype == torch.int64
    np.testing.assert_array_equal(matrix.matrix.numpy(), looped(pred, label, classes, ignore))


def test_an_ignored_id_below_the_number_of_classes():
    pred, label = maps(ignore=0)
    matrix = ConfusionMatrix(K, 0)
    matrix.update(pred, label)
    np.testing.assert_array_equal(matrix.matrix.numpy(), looped(pred, label, ignore=0))


def test_update_returns_each_image_and_the_sum_is_the_split():
    pred, label = maps()
    matrix = ConfusionMatrix(K, IGNORE)
    each = matrix.update(pred, label)
    for i in range(len(pred)):
        np.testing.assert_array_equal(each[i].numpy(), looped(pred[i], label[i]))
    torch.testing.assert_close(each.sum(0), matrix.matrix)


def test_streaming_and_merging_equal_one_update():
    whole, first, second = (ConfusionMatrix(K, IGNORE) for _ in range(3))
    (p1, l1), (p2, l2) = maps(1), maps(2)
    whole.update(torch.cat((p1, p2)), torch.cat((l1, l2)))
    first.update(p1, l1)
    second.update(p2[0], l2[0])
    second.update(p2[1:], l2[1:])
    torch.testing.assert_close(first.merge(second).matrix, whole.matrix)


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
    label[label == 4] = 3  # class 4 is predicted but never labelled
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


def test_conventions_in_closed_form():
    #  class 0: TP 3, one of its pixels called 1, one pixel of 2 called 0 -> 3/5; class 1: TP 2, FP 1 -> 2/3;
    #  class 2: never found -> 0; class 3: predicted once where 1 is labelled; class 4: nowhere -> NaN
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


def test_nothing_scored_is_nan_not_zero():
    matrix = ConfusionMatrix(3, 255)
    matrix.update(torch.zeros(1, 4, 4, dtype=torch.uint8), torch.full((1, 4, 4), 255, dtype=torch.uint8))
    assert math.isnan(matrix.miou())
    assert math.isnan(matrix.published_miou())
    assert math.isnan(matrix.pixel_accuracy())


def test_counts_stay_exact_where_float32_would_not():
    matrix = ConfusionMatrix(2)
    matrix.counts[0, 0] = 2**24
    matrix.update(torch.zeros(1, 1, 1, dtype=torch.uint8), torch.zeros(1, 1, 1, dtype=torch.uint8))
    assert matrix.matrix[0, 0] == 2**24 + 1


@pytest.mark.parametrize(
    ("dtype", "foreign"), [(torch.uint8, K), (torch.uint8, 255), (torch.int64, -1), (torch.int64, 256)]
)
def test_foreign_ids_are_refused_and_not_counted(dtype, foreign):
    pred, label = maps()
    pred, label = pred.to(dtype), label.to(dtype)
    matrix = ConfusionMatrix(K, IGNORE)
    bad = pred.clone()
    bad[0, 0, :4] = foreign
    label[0, 0, :4] = 2
    with pytest.raises(UnknownIdError, match=r"4 predicted pixels hold ids outside 0\.\.10"):
        matrix.update(bad, label)
    assert matrix.matrix.sum() == 0
    bad_label = label.clone()
    bad_label[0, 0, :4] = foreign if foreign != IGNORE else 12
    with pytest.raises(UnknownIdError, match="4 label pixels"):
        matrix.update(pred, bad_label)


def test_predictions_at_ignored_pixels_are_never_looked_at():
    _, label = maps()
    matrix = ConfusionMatrix(K, IGNORE)
    matrix.update(label, label)  # holds the ignored id as a "prediction", at ignored pixels only
    assert matrix.miou() == 1


def test_wrong_shapes_say_what_to_do():
    matrix = ConfusionMatrix(K, IGNORE)
    with pytest.raises(ValueError, match="resize the logits to the label"):
        matrix.update(torch.zeros(1, 4, 4, dtype=torch.long), torch.zeros(1, 8, 8, dtype=torch.long))
    with pytest.raises(ValueError, match="19 channels"):
        matrix.update(torch.zeros(1, 19, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long))
    with pytest.raises(ValueError, match="cannot merge"):
        matrix.merge(ConfusionMatrix(19, 255))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
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
