"""Lovász-softmax against its definition by sets, and against 1 - IoU where predictions are certain."""

import pytest
import torch

from s2fpn_lib.losses import DeepSupervisionLoss, lovasz_softmax
from s2fpn_lib.metrics import ConfusionMatrix

IGNORED = 11


def by_sets(logits, target):
    """The definition, with sets of pixels: slow and plain."""
    probability = logits.double().softmax(1).movedim(1, -1).flatten(0, 2)
    target = target.flatten()
    kept = [i for i in range(len(target)) if target[i] != IGNORED]
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


def sample(classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(2, classes, 5, 7, generator=generator)
    target = torch.randint(0, classes - 1, (2, 5, 7), generator=generator)  # the last class never occurs
    target[0, 0] = IGNORED
    return logits, target


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_definition(seed):
    logits, target = sample(seed=seed)
    assert lovasz_softmax(logits, target, IGNORED).item() == pytest.approx(by_sets(logits, target), abs=1e-6)


def test_certain_predictions_give_one_minus_iou():
    logits, target = sample()
    prediction = logits[:, :3].argmax(1)
    certain = torch.nn.functional.one_hot(prediction, 4).movedim(-1, 1) * 200.0
    confusion = ConfusionMatrix(4, IGNORED)
    confusion.update(prediction, target)
    assert lovasz_softmax(certain, target, IGNORED).item() == pytest.approx(1 - confusion.miou(), abs=1e-6)


def test_no_labelled_pixel_gives_zero_and_a_zero_gradient():
    logits, target = sample()
    logits.requires_grad_()
    loss = lovasz_softmax(logits, torch.full_like(target, IGNORED), IGNORED)
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_ignored_pixels_get_no_gradient():
    logits, target = sample()
    logits.requires_grad_()
    lovasz_softmax(logits, target, IGNORED).backward()
    ignored = target == IGNORED
    assert not logits.grad.movedim(1, -1)[ignored].any()
    assert logits.grad.movedim(1, -1)[~ignored].any(-1).all()


def test_is_added_to_the_main_loss_with_its_weight():
    logits, target = sample()
    aux = [torch.randn(2, 4, 5, 7)]
    plain = DeepSupervisionLoss(IGNORED)((logits, aux), target)
    with_term = DeepSupervisionLoss(IGNORED, lovasz_weight=0.5)((logits, aux), target)
    every_second = lovasz_softmax(logits[..., ::2, ::2], target[..., ::2, ::2], IGNORED)
    torch.testing.assert_close(with_term - plain, 0.5 * every_second)
