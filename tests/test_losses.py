"""Losses against references computed pixel by pixel, set by set, and with torch's own losses."""

import math

import pytest
import torch
import torch.nn.functional as F

from s2fpn_lib.losses import DeepSupervisionLoss, distillation_loss, lovasz_softmax
from s2fpn_lib.metrics import ConfusionMatrix

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


@pytest.mark.parametrize("weights", [WEIGHTS, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_are_those_of_torch_for_every_size(weights, dtype, layout):
    """The CPU's own gradient against autograd through torch's resize and cross-entropy, with an image ignored."""
    _, label = random_case(size=(12, 16))
    label[1] = IGNORE
    sizes = [(12, 16), (3, 4), (1, 1), (5, 16), (1, 7)]
    maps = [(3 * torch.randn(2, K, *size)).to(dtype, memory_format=layout).requires_grad_() for size in sizes]
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss = DeepSupervisionLoss(IGNORE, weights, aux_weight=0.5)((maps[0], maps[1:]), label)
    gradients = torch.autograd.grad(2 * loss, maps)
    full = [F.interpolate(each.float(), (12, 16), mode="bilinear", align_corners=True) for each in maps]
    terms = [F.cross_entropy(each, label.long(), weights, ignore_index=IGNORE) for each in full]
    torch.testing.assert_close(loss, terms[0] + 0.5 * sum(terms[1:]))
    for got, expected in zip(gradients, torch.autograd.grad(2 * (terms[0] + 0.5 * sum(terms[1:])), maps), strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got, expected)


def test_published_loss_is_the_sum_of_five_terms_at_the_labels_size():
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


def test_own_resolution_takes_every_kth_label_pixel():
    logits, label = random_case(size=(12, 16))
    aux = torch.randn(2, K, 3, 4)
    loss = DeepSupervisionLoss(IGNORE, aux_resolution="own")((logits, [aux]), label)
    main = DeepSupervisionLoss(IGNORE)(logits, label)
    small = label[:, ::4, ::4].long()
    torch.testing.assert_close(loss - main, F.cross_entropy(aux, small, ignore_index=IGNORE))


@pytest.mark.parametrize(("threshold", "min_kept"), [(0.05, 0.0), (0.05, 0.3), (0.7, 0.0), (0.7, 0.7), (0.7, 1.0)])
def test_ohem_keeps_exactly_the_hard_pixels(threshold, min_kept):
    logits, label = random_case(seed=3)
    loss = DeepSupervisionLoss(IGNORE, WEIGHTS, criterion="ohem", ohem_threshold=threshold, ohem_min_kept=min_kept)(
        logits, label
    )
    expected = reference(logits, label, WEIGHTS, threshold, int(min_kept * label.numel()))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_ohem_gives_easy_pixels_no_gradient():
    logits = torch.zeros(1, 2, 1, 2)
    logits[0, 0, 0, 0] = 5.0  # pixel 0: certain and correct; pixel 1: undecided
    logits.requires_grad_()
    label = torch.zeros(1, 1, 2, dtype=torch.uint8)
    DeepSupervisionLoss(IGNORE, criterion="ohem", ohem_min_kept=0.0)(logits, label).backward()
    assert logits.grad[..., 0].abs().max() == 0
    assert logits.grad[..., 1].abs().max() > 0


@pytest.mark.parametrize("criterion", ["cross_entropy", "ohem"])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_a_batch_without_labeled_pixels_gives_zero(criterion, weights):
    logits, _ = random_case()
    logits.requires_grad_()
    label = torch.full((2, 6, 8), IGNORE, dtype=torch.uint8)
    loss = DeepSupervisionLoss(IGNORE, weights, criterion=criterion)((logits, [logits * 2]), label)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_label_dtypes_and_half_precision_logits():
    logits, label = random_case()
    loss = DeepSupervisionLoss(IGNORE, WEIGHTS)
    assert torch.equal(loss(logits, label), loss(logits, label.long()))
    assert loss(logits.bfloat16(), label).dtype == torch.float32
    assert torch.equal(loss(logits.bfloat16(), label), loss(logits.bfloat16().float(), label))


def test_unknown_label_ids_are_named():
    logits, label = random_case()
    label[0, 0, 0], label[1, 2, 3] = 5, 200
    with pytest.raises(ValueError, match=r"label ids \[5, 200\] .* 4 classes .* ignored id 7"):
        DeepSupervisionLoss(IGNORE)(logits, label)


@pytest.mark.cuda
def test_unknown_label_ids_make_the_loss_nan_on_cuda():
    logits, label = (each.cuda() for each in random_case())
    label[0, 0, 0] = 5
    loss = DeepSupervisionLoss(IGNORE, WEIGHTS).cuda()
    assert loss(logits, label).isnan()
    with pytest.raises(ValueError, match=r"label ids \[5\]"):
        loss.check_labels(label, K)
    label[0, 0, 0] = IGNORE
    assert loss(logits, label).isfinite()


@pytest.mark.parametrize("wrong", [{"criterion": "focal"}, {"aux_resolution": "half"}, {"ohem_min_kept": 100_000}])
def test_invalid_options(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DeepSupervisionLoss(IGNORE, **wrong)


def lovasz_by_sets(logits, target):
    """The definition, with sets of pixels."""
    probability = logits.double().softmax(1).movedim(1, -1).flatten(0, 2)
    target = target.flatten()
    kept = [i for i in range(len(target)) if target[i] != IGNORE]
    losses = []
    for c in range(logits.shape[1]):
        true = {i for i in kept if target[i] == c}
        if not true:
            continue
        error = {i: abs((i in true) - probability[i, c].item()) for i in kept}
        loss, before, mistakes = 0.0, 0.0, set()
        for i in sorted(kept, key=error.get, reverse=True):
            mistakes.add(i)
            now = 1 - len(true - mistakes) / len(true | mistakes)
            loss += error[i] * (now - before)
            before = now
        losses.append(loss)
    return sum(losses) / len(losses)


def lovasz_case(classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(2, classes, 5, 7, generator=generator)
    target = torch.randint(0, classes - 1, (2, 5, 7), generator=generator)  # the last class never occurs
    target[0, 0] = IGNORE
    return logits, target


@pytest.mark.parametrize("seed", range(2))
def test_lovasz_equals_its_definition(seed):
    logits, target = lovasz_case(seed=seed)
    assert lovasz_softmax(logits, target, IGNORE).item() == pytest.approx(lovasz_by_sets(logits, target), abs=1e-6)


def test_lovasz_of_certain_predictions_is_one_minus_iou():
    logits, target = lovasz_case()
    prediction = logits[:, :3].argmax(1)
    certain = torch.nn.functional.one_hot(prediction, 4).movedim(-1, 1) * 200.0
    confusion = ConfusionMatrix(4, IGNORE)
    confusion.update(prediction, target)
    assert lovasz_softmax(certain, target, IGNORE).item() == pytest.approx(1 - confusion.miou(), abs=1e-6)


def test_lovasz_without_labeled_pixels_is_zero():
    logits, target = lovasz_case()
    logits.requires_grad_()
    loss = lovasz_softmax(logits, torch.full_like(target, IGNORE), IGNORE)
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_lovasz_gives_ignored_pixels_no_gradient():
    logits, target = lovasz_case()
    logits.requires_grad_()
    lovasz_softmax(logits, target, IGNORE).backward()
    ignored = target == IGNORE
    assert not logits.grad.movedim(1, -1)[ignored].any()
    assert logits.grad.movedim(1, -1)[~ignored].any(-1).all()


def test_lovasz_is_added_to_the_main_loss():
    logits, target = lovasz_case()
    aux = [torch.randn(2, 4, 5, 7)]
    plain = DeepSupervisionLoss(IGNORE)((logits, aux), target)
    with_term = DeepSupervisionLoss(IGNORE, lovasz_weight=0.5)((logits, aux), target)
    every_second = lovasz_softmax(logits[..., ::2, ::2], target[..., ::2, ::2], IGNORE)
    torch.testing.assert_close(with_term - plain, 0.5 * every_second)


def random_logits(seed, size=(6, 8)):
    return 3 * torch.randn(2, 5, *size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [0.5, 4.0])
def test_distillation_is_cross_entropy_minus_the_teachers_entropy(temperature):
    student, teacher = random_logits(0), random_logits(1)
    soft = (teacher / temperature).softmax(1)
    crossed = F.cross_entropy(student / temperature, soft)
    entropy = -(soft * soft.log()).sum(1).mean()
    expected = temperature**2 * (crossed - entropy)
    torch.testing.assert_close(distillation_loss(student, teacher, temperature), expected)


def test_distillation_is_zero_at_the_teachers_logits():
    student = random_logits(0).requires_grad_()
    loss = distillation_loss(student, random_logits(0) + 7.0)  # a constant does not change probabilities
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert student.grad.abs().max() < 1e-6
    assert distillation_loss(student, random_logits(1)) > 0.1


def test_distillation_at_a_high_temperature_compares_centered_logits():
    """Hinton et al., equation 4: T² KL tends to the mean squared difference of centered logits over 2 K."""
    student, teacher = random_logits(0).double(), random_logits(1).double()
    centered = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    expected = centered.square().sum(1).mean() / (2 * 5)
    assert distillation_loss(student, teacher, 1000.0).item() == pytest.approx(expected.item(), rel=1e-2)


def test_distillation_at_the_teachers_resolution():
    student, teacher = random_logits(0, (3, 4)), random_logits(1)
    resized = F.interpolate(student, (6, 8), mode="bilinear", align_corners=True)
    torch.testing.assert_close(distillation_loss(student, teacher), distillation_loss(resized, teacher))


def test_distillation_of_half_precision_logits():
    student, teacher = random_logits(0).bfloat16(), random_logits(1).bfloat16()
    loss = distillation_loss(student, teacher)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, distillation_loss(student.float(), teacher.float()))
