"""An inspection keeps what the model and the recorder return; a state is immutable."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from s2fpn_lib.attention.recorder import AttentionRecorder
from s2fpn_lib.data import get_protocol
from s2fpn_lib.inspector import State, inspect
from s2fpn_lib.model import build_model
from tests.inspecting import PROTOCOL, SIZE, inspection, network, random_ids, random_image


@pytest.mark.parametrize("revision", ["v1", "v2"])
def test_inspection_keeps_model_outputs(revision):
    model, found = network(revision=revision), inspection(revision=revision)
    with torch.inference_mode(), AttentionRecorder(model) as recorder:
        logits = model(model.preprocess(random_image()[None]))
    torch.testing.assert_close(found.probabilities, logits[0].softmax(0))
    assert torch.equal(found.ids.long(), logits[0].argmax(0))
    for kept, recorded in zip(found.levels, recorder.capture.levels, strict=True):
        assert torch.equal(kept.gates, recorded.gates)
        assert kept.gamma == recorded.gamma
    assert (found.size, found.revision, found.warning) == (SIZE, revision, "")


def test_one_forward_pass_restores_training_mode_and_warns_if_untrained():
    model = build_model("s2fpn_lite", num_classes=PROTOCOL.num_classes).train()
    passes = []
    model.register_forward_hook(lambda module, *_: passes.append(module.training))
    assert "untrained" in inspect(model, random_image(), PROTOCOL).warning
    assert passes == [False]
    assert all(module.training for module in model.modules())


def test_errors_for_label_size_and_number_of_classes():
    with pytest.raises(ValueError, match=r"label is \(60, 90\) and the image \(45, 71\)"):
        inspect(network(), random_image(), PROTOCOL, label=random_ids(3, (60, 90)))
    with pytest.raises(ValueError, match="mine predicts 11 classes, but cityscapes-fine-1024x2048 has 19"):
        inspect(network(), random_image(), get_protocol("cityscapes-fine-1024x2048"), model_name="mine")


@pytest.mark.parametrize(("width", "stride"), [(640, 1), (641, 2), (1281, 3)])
def test_stride_of_wide_images(width, stride):
    assert dataclasses.replace(inspection(), image=random_image((2, width))).stride == stride


def test_pixel_on_level():
    found = inspection()
    for level in found.levels:
        assert found.on_level(level, 0, 0) == (0, 0)
        assert found.on_level(level, 44, 70) == (level.size[0] - 1, level.size[1] - 1)


def test_pixel_is_clamped_to_the_image():
    state = State(y=5, x=5)
    assert state.at(-3, 200, (64, 96)) == State(y=0, x=95)
    assert state == State(y=5, x=5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        state.y = 3


def test_pins_keep_their_order():
    state = State(y=1, x=2).pinned().at(3, 4, (9, 9)).pinned()
    assert state.pins == ((1, 2), (3, 4))
    assert state.at(1, 2, (9, 9)).pinned().pins == ((3, 4),)


@pytest.mark.parametrize(("wrong", "message"), [({"view": "depth"}, "choose one of"), ({"opacity": 1.5}, "between 0")])
def test_invalid_state_is_an_error(wrong, message):
    with pytest.raises(ValueError, match=message):
        State(**wrong)
