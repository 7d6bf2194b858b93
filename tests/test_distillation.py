"""Distillation against torch's own cross-entropy with soft targets, and a training step against its parts."""

import copy

import pytest
import torch
import torch.nn.functional as F

from s2fpn_lib.checkpoint import CheckpointError, load_model, save_weights
from s2fpn_lib.config import TrainConfig
from s2fpn_lib.data import open_dataset
from s2fpn_lib.losses import distillation_loss
from s2fpn_lib.model import build_model
from s2fpn_lib.runs import RunDirectory
from s2fpn_lib.train import Teacher, Training, pretraining, step_seed

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    model = build_model("s2fpn_lite", num_classes=11, double_resolution=True)
    save_weights(model, path, {"dataset": "roadscenes", "train_split": "train", "pretraining": "none"})
    return path


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


def test_a_teacher_is_frozen_and_reads_uint8_images(teacher_file):
    teacher = Teacher(teacher_file, 11, CPU)
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    got = teacher.logits(images)
    model = load_model(teacher_file)
    assert got.shape == (2, 11, 32, 48)  # at the resolution that it computes, stride 2
    torch.testing.assert_close(got, model(model.preprocess(images), resize=False).detach())
    assert not got.requires_grad
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())


def test_teachers_that_cannot_teach_are_refused(teacher_file, tmp_path):
    with pytest.raises(ValueError, match="has 11 classes, the student 19"):
        Teacher(teacher_file, 19, CPU)
    with pytest.raises(CheckpointError, match="nobody"):
        Teacher(tmp_path / "nobody.safetensors", 11, CPU)


def taught_by(teacher_file, **changes) -> TrainConfig:
    base = TrainConfig(
        dataset="roadscenes",
        val_split="",
        checkpoint_rule="last",
        model="s2fpn_lite",
        crop=(48, 64),
        batch_size=4,
        class_weights=0,
        epochs=1,
    )
    return base.replace(distill_from=str(teacher_file), **changes)


@pytest.mark.parametrize(("weight", "temperature"), [(1.0, 1.0), (0.5, 4.0)])
def test_a_training_step_adds_the_weighted_loss(teacher_file, tmp_path, weight, temperature):
    config = taught_by(teacher_file, distill_weight=weight, distill_temperature=temperature)
    scenes = open_dataset("roadscenes")
    taught, plain = (
        Training(each, scenes, None, CPU, RunDirectory(tmp_path / str(i)))
        for i, each in enumerate((config, config.replace(distill_from="")))
    )
    images, labels = next(iter(plain.loader))

    torch.manual_seed(step_seed(config.seed, 0))
    student = copy.deepcopy(plain.model).train()
    with torch.no_grad():
        scores, _ = student(student.preprocess(images), aux=True, resize=False)  # the same dropout masks
    expected = weight * distillation_loss(scores, taught.teacher.logits(images), temperature)
    assert expected > 0.1

    for training in (taught, plain):
        training.model.train()
        training.train_step(images, labels)
    assert (taught.loss_sum - plain.loss_sum).item() == pytest.approx(expected.item(), rel=1e-4)
    gradients = [torch.cat([p.grad.flatten() for p in each.model.parameters()]) for each in (taught, plain)]
    assert not torch.allclose(*gradients)


def test_a_run_says_who_taught_it(teacher_file):
    assert pretraining(taught_by(teacher_file)) == "none; taught by a network trained on roadscenes train"
