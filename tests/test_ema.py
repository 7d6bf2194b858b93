"""The moving average against its formula."""

import pytest
import torch
from torch import nn

from s2fpn_lib.optim import ExponentialMovingAverage


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def test_follows_the_formula_for_weights_and_running_statistics():
    model = small_model()
    average = ExponentialMovingAverage(model, 0.9)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    for step in range(40):
        model(torch.randn(2, 3, 8, 8))  # moves the running statistics
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * value
            else:
                expected[name] = value.clone()
    for name, value in average.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
    assert average.state_dict()["1.num_batches_tracked"] == 40


def test_leaves_the_model_alone_and_needs_no_gradient():
    model = small_model()
    average = ExponentialMovingAverage(model, 0.5)
    before = [parameter.clone() for parameter in model.parameters()]
    average.update(0)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not any(parameter.requires_grad for parameter in average.model.parameters())
    assert not average.model.training
    assert model.training


def test_state_round_trip_goes_on_averaging():
    model = small_model()
    one, two = ExponentialMovingAverage(model, 0.5), ExponentialMovingAverage(model, 0.5)
    with torch.no_grad():
        model[0].weight.add_(1)
    one.update(20)
    two.load_state_dict(one.state_dict())
    one.update(21)
    two.update(21)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_refuses_a_decay_outside_its_range():
    with pytest.raises(ValueError, match="between 0 and 1"):
        ExponentialMovingAverage(small_model(), 1.0)
