"""The replay check: it changes nothing, and it finds a wrong bit and names its layer."""

import functools

import pytest
import torch

from s2fpn_lib.data.roadscenes.dataset import RoadScenes
from s2fpn_lib.replay import ReplayMismatch
from s2fpn_lib.runs import RunDirectory
from s2fpn_lib.state import TrainingState
from s2fpn_lib.train import TrainConfig, train_step


@functools.cache
def scenes() -> RoadScenes:
    """Eight small scenes, each drawn once."""
    found = RoadScenes("train", size=(64, 96), count=8)
    found.arrays = functools.cache(found.arrays)
    return found


def state_of(folder, **changes) -> TrainingState:
    small = {"crop": (32, 48), "batch_size": 2, "encoder_weights": "", "encoder_lr": 0.0, "amp": "off", "device": "cpu"}
    config = TrainConfig.preset("quick", dataset="roadscenes", **{**small, **changes})
    return TrainingState(config, scenes(), None, torch.device("cpu"), RunDirectory(folder))


def steps(state: TrainingState, count: int) -> TrainingState:
    state.model.train()
    for step in range(count):
        train_step(state, *state.loader.batch(*divmod(step, len(state.loader))))
    return state


def flip_one_bit(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in which the lowest bit of one float32 is another one."""
    changed = tensor.detach().clone(memory_format=torch.contiguous_format)
    changed.reshape(-1)[:1].view(torch.int32).bitwise_xor_(1)
    return tensor + (changed - tensor).detach()


@pytest.mark.parametrize("changes", [{}, {"amp": "bf16", "revision": "v2"}])
def test_the_check_changes_nothing(tmp_path, changes):
    plain, checked = (steps(state_of(tmp_path, replay_check=n, **changes), 4) for n in (0, 2))
    for name, value in plain.state_dict()["model"].items():
        assert torch.equal(value, checked.state_dict()["model"][name]), name
    assert all(not module._forward_hooks for module in checked.model.modules())


def test_it_belongs_to_no_recipe(tmp_path):
    assert TrainConfig(replay_check=3).recipe() == TrainConfig().recipe()
    with pytest.raises(ValueError, match="replay_check is -1"):
        TrainConfig(replay_check=-1)


@pytest.mark.parametrize(("every", "found"), [(2, True), (3, False)])
def test_a_wrong_bit_in_the_forward_pass_names_step_and_layer(tmp_path, every, found):
    state = steps(state_of(tmp_path, replay_check=every), 4)
    calls = []
    name, layer = [each for each in state.model.named_modules() if isinstance(each[1], torch.nn.Conv2d)][5]

    def faulty(module, _, output):
        calls.append(1)
        return flip_one_bit(output) if len(calls) == 2 else None

    layer.register_forward_hook(faulty, prepend=True)
    images, labels = state.loader.batch(0, 0)
    if not found:  # the steps 0, 3, 6, ... are checked, and this is step 4
        return train_step(state, images, labels)
    with pytest.raises(ReplayMismatch) as caught:
        train_step(state, images, labels)
    message = str(caught.value)
    assert message.startswith("step 4 (epoch 2, batch 1 of 4): computed twice from the same state, ")
    assert f"first the output of {name}, call" in message
    assert "no state had been saved" in message


def test_a_wrong_bit_in_the_backward_pass_names_the_gradient(tmp_path):
    state = steps(state_of(tmp_path, replay_check=4), 4)
    parameters = dict(state.model.named_parameters())
    name = [each for each in parameters if each.startswith("encoder.") and parameters[each].dim() == 4][3]
    calls = []
    parameters[name].register_hook(lambda grad: flip_one_bit(grad) if calls.append(1) or len(calls) == 1 else None)
    with pytest.raises(ReplayMismatch, match=rf"1 of \d+ hashes differ, first the gradient of {name}\b"):
        train_step(state, *state.loader.batch(0, 0))
    assert len(calls) == 2
