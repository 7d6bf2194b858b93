"""The learning rate against the published code's formula, written out again here."""

import math

import pytest
import torch

from s2fpn_lib.optim import fit_warmup, warmup_poly, warmup_poly_schedule


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
        return optimizer, warmup_poly_schedule(optimizer, total=30, warmup=6)

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


def test_a_warmup_that_never_ends_is_refused_and_can_be_fitted():
    with pytest.raises(ValueError, match="warmup is 500 steps of 400"):
        warmup_poly(0, total=400, warmup=500)
    assert fit_warmup(500, 400) == 40
    assert fit_warmup(500, 8700) == 500
