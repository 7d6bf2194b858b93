"""The loss against references written pixel by pixel, and its behaviour where torch's own gives NaN."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from s2fpn_lib.data import get_protocol
from s2fpn_lib.data.dataset import SegmentationDataset
from s2fpn_lib.data.statistics import class_pixels, class_weights_from
from s2fpn_lib.losses import DeepSupervisionLoss

K, IGNORE = 4, 7
WEIGHTS = torch.tensor([1.0, 2.5, 0.5, 4.0])


def random_case(seed: int = 0, size: tuple[int, int] = (6, 8)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, K, *size, generator=generator)
    label = torch.randint(0, K + 1, (2, *size), generator=generator)
    return logits, torch.where(label == K, IGNORE, label).to(torch.uint8)


def reference(logits, label, weights, threshold=None, min_kept=0):
    """Weighted mean cross-entropy, one pixel after the other; with a threshold, of the hard pixels only."""
    pixels = []  # (probability of the true class, its weight)
    for b in range(len(label)):
        for y in range(label.shape[1]):
            for x in range(label.shape[2]):
                true = int(label[b, y, x])
                if true == IGNORE:
                    continue
                scores = [math.exp(v) for v in logits[b, :, y, x].tolist()]
                pixels.append((scores[true] / sum(scores), float(weights[true])))
    if threshold is not None:
        pixels.sort()
        kept = max(min_kept, sum(probability <= threshold for probability, _ in pixels))
        pixels = pixels[:kept]
    return sum(-w * math.log(p) for p, w in pixels) / sum(w for _, w in pixels)


def test_main_term_is_the_weighted_mean():
    logits, label = random_case()
    loss = DeepSupervisionLoss(IGNORE, WEIGHTS)(logits, label)
    assert loss.item() == pytest.approx(reference(logits, label, WEIGHTS), rel=1e-5)
    torch.testing.assert_close(loss, F.cross_entropy(logits, label.long(), WEIGHTS, ignore_index=IGNORE))


def test_published_form_is_the_sum_of_five_terms_at_the_labels_size():
    logits, label = random_case(size=(12, 16))
    auxiliary = [torch.randn(2, K, 12 // s, 16 // s) for s in (4, 2, 2, 1)]
    loss = DeepSupervisionLoss(IGNORE, WEIGHTS)((logits, auxiliary), label)
    expected = 0.0
    for term in (logits, *auxiliary):
        full = F.interpolate(term, (12, 16), mode="bilinear", align_corners=True)
        expected += F.cross_entropy(full, label.long(), WEIGHTS, ignore_index=IGNORE)
    torch.testing.assert_close(loss, expected)
    half = DeepSupervisionLoss(IGNORE, WEIGHTS, aux_weight=0.5)((logits, auxiliary), label)
    alone = DeepSupervisionLoss(IGNORE, WEIGHTS)(logits, label)
    torch.testing.assert_close(half - alone, (loss - alone) / 2)


def test_own_resolution_compares_with_every_kth_label_pixel():
    logits, label = random_case(size=(12, 16))
    aux = torch.randn(2, K, 3, 4)
    loss = DeepSupervisionLoss(IGNORE, aux_resolution="own")((logits, [aux]), label)
    main = DeepSupervisionLoss(IGNORE)(logits, label)
    small = label[:, ::4, ::4].long()
    torch.testing.assert_close(loss - main, F.cross_entropy(aux, small, ignore_index=IGNORE))


@pytest.mark.parametrize("min_kept", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("threshold", [0.05, 0.7])
def test_ohem_keeps_exactly_the_hard_pixels(threshold, min_kept):
    logits, label = random_case(seed=3)
    loss = DeepSupervisionLoss(IGNORE, WEIGHTS, criterion="ohem", ohem_threshold=threshold, ohem_min_kept=min_kept)(
        logits, label
    )
    expected = reference(logits, label, WEIGHTS, threshold, int(min_kept * label.numel()))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_ohem_sends_no_gradient_into_easy_pixels():
    logits = torch.zeros(1, 2, 1, 2)
    logits[0, 0, 0, 0] = 5.0  # pixel 0: sure and right; pixel 1: undecided
    logits.requires_grad_()
    label = torch.zeros(1, 1, 2, dtype=torch.uint8)
    DeepSupervisionLoss(IGNORE, criterion="ohem", ohem_min_kept=0.0)(logits, label).backward()
    assert logits.grad[..., 0].abs().max() == 0
    assert logits.grad[..., 1].abs().max() > 0


@pytest.mark.parametrize("criterion", ["cross_entropy", "ohem"])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_a_batch_without_any_labelled_pixel_gives_zero_and_a_finite_gradient(criterion, weights):
    logits, _ = random_case()
    logits.requires_grad_()
    label = torch.full((2, 6, 8), IGNORE, dtype=torch.uint8)
    loss = DeepSupervisionLoss(IGNORE, weights, criterion=criterion)((logits, [logits * 2]), label)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_uint8_and_int64_labels_agree_and_half_precision_logits_count_in_float32():
    logits, label = random_case()
    loss = DeepSupervisionLoss(IGNORE, WEIGHTS)
    assert torch.equal(loss(logits, label), loss(logits, label.long()))
    assert loss(logits.bfloat16(), label).dtype == torch.float32
    assert torch.equal(loss(logits.bfloat16(), label), loss(logits.bfloat16().float(), label))


def test_foreign_label_ids_are_named():
    logits, label = random_case()
    label[0, 0, 0], label[1, 2, 3] = 5, 200
    with pytest.raises(ValueError, match=r"label ids \[5, 200\] .* 4 classes .* ignored id 7"):
        DeepSupervisionLoss(IGNORE)(logits, label)


@pytest.mark.cuda
def test_foreign_label_ids_make_the_loss_nan_on_cuda_and_leave_the_context_alive():
    logits, label = (each.cuda() for each in random_case())
    label[0, 0, 0] = 5
    loss = DeepSupervisionLoss(IGNORE, WEIGHTS).cuda()
    assert loss(logits, label).isnan()
    with pytest.raises(ValueError, match=r"label ids \[5\]"):
        loss.check_labels(label, K)
    label[0, 0, 0] = IGNORE
    assert loss(logits, label).isfinite()


@pytest.mark.parametrize("wrong", [{"criterion": "focal"}, {"aux_resolution": "half"}, {"ohem_min_kept": 100_000}])
def test_unknown_options_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DeepSupervisionLoss(IGNORE, **wrong)


class Labelled(SegmentationDataset):
    """Labels given as arrays, with black images."""

    name, split, protocol = "camvid", "train", get_protocol("camvid-segnet-360x480")

    def __init__(self, *labels: list[list[int]]):
        self.labels = [np.array(label, dtype=np.uint8) for label in labels]
        self.names = self.drives = [f"sample{i}" for i in range(len(labels))]

    def arrays(self, index):
        label = self.labels[index]
        return np.zeros((*label.shape, 3), dtype=np.uint8), label


def test_class_weights_are_the_published_formula_over_labelled_pixels():
    dataset = Labelled([[0, 0, 11], [1, 11, 11]], [[0, 2, 2], [2, 2, 11]])  # 3 x class 0, 1 x 1, 4 x 2, 4 ignored
    assert class_pixels(dataset).tolist() == [3, 1, 4, 0, 0, 0, 0, 0, 0, 0, 0]
    expected = [1 / math.log(1.10 + share) for share in (3 / 8, 1 / 8, 4 / 8)] + [1 / math.log(1.10)] * 8
    assert class_weights_from(dataset, "published").tolist() == pytest.approx(expected, rel=1e-6)
    assert class_weights_from(dataset, 1.5)[3].item() == pytest.approx(1 / math.log(1.5), rel=1e-6)


def test_class_weights_name_the_sample_with_a_foreign_id_and_refuse_a_constant_without_a_bound():
    with pytest.raises(ValueError, match=r"sample1 .* holds the id 12"):
        class_weights_from(Labelled([[0]], [[12]]))
    with pytest.raises(ValueError, match="a number above 1"):
        class_weights_from(Labelled([[0]]), 1.0)
    with pytest.raises(ValueError, match="no pixel"):
        class_weights_from(Labelled([[11]]))
