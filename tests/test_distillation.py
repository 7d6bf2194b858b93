"""The distillation loss against torch's cross-entropy with soft targets."""

import pytest
import torch
import torch.nn.functional as F

from s2fpn_lib.losses import distillation_loss


def logits(seed, size=(6, 8)):
    return 3 * torch.randn(2, 5, *size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_it_is_cross_entropy_with_the_teachers_probabilities_less_their_entropy(temperature):
    student, teacher = logits(0), logits(1)
    soft = (teacher / temperature).softmax(1)
    crossed = F.cross_entropy(student / temperature, soft)
    entropy = -(soft * soft.log()).sum(1).mean()
    expected = temperature**2 * (crossed - entropy)
    torch.testing.assert_close(distillation_loss(student, teacher, temperature), expected)


def test_it_is_zero_with_a_zero_gradient_at_the_teachers_scores_and_above_zero_elsewhere():
    student = logits(0).requires_grad_()
    loss = distillation_loss(student, logits(0) + 7.0)  # a constant does not change probabilities
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert student.grad.abs().max() < 1e-6
    assert distillation_loss(student, logits(1)) > 0.1


def test_a_high_temperature_compares_centred_logits():
    """Hinton et al., equation 4: T² KL tends to the mean squared difference of centred logits over 2 K."""
    student, teacher = logits(0).double(), logits(1).double()
    centered = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    expected = centered.square().sum(1).mean() / (2 * 5)
    assert distillation_loss(student, teacher, 1000.0).item() == pytest.approx(expected.item(), rel=1e-2)


def test_a_coarser_student_is_compared_at_the_teachers_resolution():
    student, teacher = logits(0, (3, 4)), logits(1)
    resized = F.interpolate(student, (6, 8), mode="bilinear", align_corners=True)
    torch.testing.assert_close(distillation_loss(student, teacher), distillation_loss(resized, teacher))


def test_half_precision_logits_count_in_float32():
    student, teacher = logits(0).bfloat16(), logits(1).bfloat16()
    loss = distillation_loss(student, teacher)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, distillation_loss(student.float(), teacher.float()))
