"""A network under other switches keeps its weights, and gamma 0 is the identity gate where it should be."""

import pytest
import torch

from s2fpn_lib.attention.switched import switched, without_strips
from s2fpn_lib.model import build_model


def image():
    return torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def logits(model):
    with torch.inference_mode():
        return model.eval()(image())


@pytest.fixture(params=["v1", "v2"])
def model(request):
    torch.manual_seed(0)
    return build_model("s2fpn_lite", revision=request.param, num_classes=5, gamma_init=0.5)


@pytest.mark.parametrize("switches", [{"ssam": False}, {"crb": False}, {"gfu": False}, {"strip_axis": "width"}])
def test_shared_weights_stay_and_the_switch_acts(model, switches):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    other = switched(model, **switches)
    assert other.config == model.config | switches
    assert not other.training
    for name, value in other.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not torch.equal(logits(other), logits(model))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_no_switch_changes_nothing(model):
    assert torch.equal(logits(switched(model)), logits(model))


def test_parts_with_weights_of_their_own_need_training(model):
    with pytest.raises(ValueError, match=r"apf=False needs weights .* train a network with this switch"):
        switched(model, apf=False)


def test_without_strips_v1_is_without_ssam():
    torch.manual_seed(0)
    model = build_model("s2fpn_lite", revision="v1", num_classes=5, gamma_init=0.5)
    silent = without_strips(model)
    torch.testing.assert_close(logits(silent), logits(switched(model, ssam=False)))  # relu(R) is R
    assert not torch.equal(logits(silent), logits(model))
    assert model.apf1.ssam.gamma.item() == 0.5


def test_without_strips_no_strip_matters(model):
    silent = without_strips(model)
    before = logits(silent)
    for name, parameter in silent.named_parameters():
        if ".shared." in name or name.endswith("ssam.fuse.weight") or ".value." in name:
            parameter.data.normal_()
    torch.testing.assert_close(logits(silent), before)
