"""Parameter groups, learning rate, and moving average against their formulas."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from s2fpn_lib.model import build_model
from s2fpn_lib.optim import (
    ExponentialMovingAverage,
    build_optimizer,
    warmup_poly,
)


def test_encoder_and_one_dimensional_parameters_have_their_own_rates_and_decay():
    model = build_model("s2fpn_lite", num_classes=3)
    groups = build_optimizer(model, "adamw", lr=1e-3, encoder_lr=1e-4, weight_decay=0.1, decay_all=False).param_groups
    settings = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    encoder = {id(p) for p in model.encoder.parameters()}
    assert len(settings) == sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    for parameter in model.parameters():
        rate = 1e-4 if id(parameter) in encoder else 1e-3
        assert settings[id(parameter)] == (rate, 0.1 if parameter.ndim > 1 else 0.0)
    everything = build_optimizer(model, "sgd", lr=1e-3, weight_decay=0.1).param_groups
    assert [(group["lr"], group["weight_decay"]) for group in everything] == [(1e-3, 0.1)] * 2


def published_rate(base: float, cur_iter: int, t_max: int, warmup_iters: int = 500) -> float:
    """WarmupPolyLR of the published repository's lineage (DABNet), one iteration."""
    if cur_iter <= warmup_iters:
        alpha = cur_iter / warmup_iters
        return base * (1.0 / 3 * (1 - alpha) + alpha)
    return base * math.pow(1 - (cur_iter - warmup_iters) / (t_max - warmup_iters), 0.9)


def test_matches_the_published_schedule_at_every_step():
    for step in range(8700):  # the published CamVid run: 150 epochs of 58 iterations
        assert 3e-4 * warmup_poly(step, total=8700, warmup=500) == pytest.approx(
            published_rate(3e-4, step, 8700), rel=1e-12
        )


def test_ends():
    assert warmup_poly(0, total=10, warmup=4) == pytest.approx(1 / 3)
    assert warmup_poly(4, total=10, warmup=4) == 1
    assert warmup_poly(10, total=10, warmup=4) == 0
    assert warmup_poly(12, total=10, warmup=4) == 0
    assert warmup_poly(0, total=10, warmup=0) == 1


def test_scheduler_follows_the_closed_form_for_every_group_also_when_taken_up_again():
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": parameters[:1], "lr": 0.5}, {"params": parameters[1:], "lr": 2.0}]

    def fresh():
        optimizer = torch.optim.SGD([dict(group) for group in groups])
        return optimizer, LambdaLR(optimizer, partial(warmup_poly, total=30, warmup=6))

    optimizer, schedule = fresh()
    for step in range(30):
        if step == 11:
            saved = (optimizer.state_dict(), schedule.state_dict())
            optimizer, schedule = fresh()
            optimizer.load_state_dict(saved[0])
            schedule.load_state_dict(saved[1])
        factor = warmup_poly(step, total=30, warmup=6)
        assert [group["lr"] for group in optimizer.param_groups] == [0.5 * factor, 2.0 * factor]
        optimizer.step()
        schedule.step()


def test_a_warmup_that_never_ends_is_refused():
    with pytest.raises(ValueError, match="warmup is 500 steps of 400"):
        warmup_poly(0, total=400, warmup=500)


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
    for name, value in average.model.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
    assert average.model.state_dict()["1.num_batches_tracked"] == 40


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
    two.model.load_state_dict(one.model.state_dict())
    one.update(21)
    two.update(21)
    pairs = zip(one.model.state_dict().values(), two.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
