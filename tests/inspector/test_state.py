"""What an inspection keeps is what the model and the recorder say; a state is a value."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from s2fpn_lib.attention.recorder import AttentionRecorder
from s2fpn_lib.inspector import State, inspect
from s2fpn_lib.model import build_model
from tests.inspecting import PROTOCOL, network, picture


@pytest.mark.parametrize("revision", ["v1", "v2"])
def test_it_keeps_what_model_and_recorder_say(revision):
    model, image = network(revision=revision), picture(45, 71)
    inspection = inspect(model, image, PROTOCOL, name="odd", provenance={"seed": 3})
    with torch.inference_mode(), AttentionRecorder(model) as recorder:
        logits = model(model.preprocess(image[None]))
    probabilities = F.softmax(logits[0], 0)
    torch.testing.assert_close(inspection.probabilities, probabilities)
    assert torch.equal(inspection.ids.long(), logits[0].argmax(0))
    torch.testing.assert_close(inspection.confidence, probabilities.max(0).values)
    for kept, own in zip(inspection.levels, recorder.capture.levels, strict=True):
        assert torch.equal(kept.gates, own.gates)
        assert kept.gamma == own.gamma
    assert inspection.size == (45, 71)
    assert (inspection.name, inspection.revision, inspection.provenance) == ("odd", revision, {"seed": 3})


def test_one_forward_pass_that_leaves_the_mode_as_it_was():
    model = network().train()
    passes = []
    model.register_forward_hook(lambda module, *_: passes.append(module.training))
    inspect(model, picture(), PROTOCOL)
    assert passes == [False]
    assert all(module.training for module in model.modules())


def test_an_untrained_model_is_named_as_such():
    model = build_model("s2fpn_lite", num_classes=PROTOCOL.num_classes).eval()
    assert "untrained" in inspect(model, picture(), PROTOCOL).warning
    model.apf_levels[2].ssam.gamma.data.fill_(0.25)
    assert inspect(model, picture(), PROTOCOL).warning == ""


def test_a_label_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"label is \(60, 90\) and the image \(64, 96\)"):
        inspect(network(), picture(), PROTOCOL, label=torch.zeros(60, 90, dtype=torch.uint8))


@pytest.mark.parametrize(("width", "stride"), [(640, 1), (641, 2), (1281, 3)])
def test_large_images_are_drawn_with_a_stride(width, stride):
    inspection = inspect(network(), picture(64, width), PROTOCOL)
    assert inspection.stride == stride


def test_every_pixel_lies_on_every_level():
    inspection = inspect(network(), picture(45, 71), PROTOCOL)
    for level in inspection.levels:
        assert inspection.on_level(level, 0, 0) == (0, 0)
        assert inspection.on_level(level, 44, 70) == (level.size[0] - 1, level.size[1] - 1)
        assert inspection.on_level(level, 22, 35) == (22 * level.size[0] // 45, 35 * level.size[1] // 71)


def test_a_pixel_outside_is_moved_to_the_nearest_inside():
    state = State(y=5, x=5)
    assert state.at(-3, 200, (64, 96)) == State(y=0, x=95)
    assert state.at(63, 95, (64, 96)) == State(y=63, x=95)
    assert state == State(y=5, x=5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        state.y = 3


def test_classes_are_hidden_and_shown():
    state = State().toggled(3)
    assert state.hidden == {3}
    assert state.toggled(4).hidden == {3, 4}
    assert state.toggled(3).hidden == set()
    assert state.solo(2, 4).hidden == {0, 1, 3}


def test_pins_come_and_go_in_order():
    state = State(y=1, x=2).pinned().at(3, 4, (9, 9)).pinned()
    assert state.pins == ((1, 2), (3, 4))
    assert state.at(1, 2, (9, 9)).pinned().pins == ((3, 4),)


@pytest.mark.parametrize(("wrong", "said"), [({"view": "depth"}, "choose one of"), ({"opacity": 1.5}, "between 0")])
def test_a_state_that_makes_no_sense_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        State(**wrong)
