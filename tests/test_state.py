"""The parts of a training run: teacher and provenance, and the loss that a teacher adds to a training step."""

import copy

import pytest
import torch

from s2fpn_lib.checkpoint import CheckpointError, load_model, save_weights
from s2fpn_lib.config import TrainConfig
from s2fpn_lib.data import open_dataset
from s2fpn_lib.losses import distillation_loss
from s2fpn_lib.model import build_model
from s2fpn_lib.runs import RunDirectory
from s2fpn_lib.state import TrainingState, load_teacher, origin, step_seed
from s2fpn_lib.train import train_step

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    model = build_model("s2fpn_lite", num_classes=11, double_resolution=True)
    save_weights(model, path, {"dataset": "roadscenes", "train_split": "train", "pretraining": "none"})
    return path


def distilled(teacher_file, **changes) -> TrainConfig:
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


def test_a_teacher_is_frozen_and_in_evaluation_mode(teacher_file):
    teacher = load_teacher(distilled(teacher_file), 11, CPU)
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(map(torch.equal, teacher.state_dict().values(), load_model(teacher_file).state_dict().values()))
    assert load_teacher(TrainConfig(), 11, CPU) is None


def test_unusable_teachers_are_refused(teacher_file, tmp_path):
    with pytest.raises(ValueError, match="has 11 classes, the student 19"):
        load_teacher(distilled(teacher_file), 19, CPU)
    with pytest.raises(CheckpointError, match="nobody"):
        load_teacher(distilled(tmp_path / "nobody.safetensors"), 11, CPU)


def test_a_training_step_adds_the_weighted_distillation_loss(teacher_file, tmp_path):
    config = distilled(teacher_file, distill_weight=0.5, distill_temperature=4.0)
    scenes = open_dataset("roadscenes")
    student, plain = (
        TrainingState(each, scenes, None, CPU, RunDirectory(tmp_path / str(i)))
        for i, each in enumerate((config, config.replace(distill_from="")))
    )
    images, labels = next(iter(plain.loader))

    torch.manual_seed(step_seed(config.seed, 0))
    network = copy.deepcopy(plain.model).train()
    with torch.no_grad():
        scores, _ = network(network.preprocess(images), aux=True, resize=False)  # the same dropout masks
        teacher_scores = student.teacher(student.teacher.preprocess(images), resize=False)
    expected = 0.5 * distillation_loss(scores, teacher_scores, 4.0)
    assert expected > 0.1

    for state in (student, plain):
        state.model.train()
        train_step(state, images, labels)
    assert (student.loss_sum - plain.loss_sum).item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize(
    ("init", "changes", "expected"),
    [
        (False, {}, "none"),
        (False, {"encoder_weights": "imagenet"}, "imagenet"),
        (True, {}, "none, then roadscenes train"),
    ],
)
def test_pretraining_names_the_data_of_earlier_weights(teacher_file, init, changes, expected):
    config = TrainConfig(init_from=str(teacher_file) if init else "", **changes)
    assert origin(config, "shop")["pretraining"] == expected


def test_the_origin_lists_all_trainings_oldest_first(teacher_file, tmp_path):
    train = {"dataset": "roadscenes", "split": "train"}
    config = distilled(teacher_file, init_from=str(teacher_file), train_split="train:drive=park")
    assert origin(config, "shop") == {
        "pretraining": "none, then roadscenes train; taught by a network trained on roadscenes train",
        "training": [train, train, {"dataset": "shop", "split": "train:drive=park"}],
    }
    assert origin(config, "shop", ["head.weight"])["pretraining"].startswith(
        "none, then roadscenes train; initialized anew: head.weight;"
    )
    taught = "none; taught by a network trained on roadscenes train"
    assert origin(distilled(teacher_file), "shop")["pretraining"] == taught
    published = {"classifier.fc.conv.weight": torch.zeros(11, 64, 1, 1)}
    torch.save(published, tmp_path / "model_150.pth")
    assert origin(TrainConfig(init_from=str(tmp_path / "model_150.pth")), "camvid") == {
        "pretraining": "unstated, then model_150.pth (training data not recorded)",
        "training": [{"dataset": "camvid", "split": "train"}],
    }
