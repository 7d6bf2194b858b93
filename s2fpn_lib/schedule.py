"""Learning rate: linear warm-up, then polynomial decay, stepped once an iteration.

The closed form is the whole schedule: the rate of step k depends on nothing but k, so a resumed run needs no
scheduler state beyond its step. Source: the published recipe (500 warm-up iterations from lr/3, poly 0.9), whose code
rebuilds the scheduler every step and thereby computes exactly this function.
"""

from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_poly(step: int, *, total: int, warmup: int, start_factor: float = 1 / 3, power: float = 0.9) -> float:
    """Factor on the base learning rate for step `step` (0 is the first optimizer step).

    step <= warmup:  start + (1 - start) * step / warmup
    step >  warmup:  (1 - (step - warmup) / (total - warmup)) ** power, 0 from `total` on

    Args:
        step: number of optimizer steps already done.
        total: steps of the whole run.
        warmup: length of the warm-up in steps, less than `total`; 0 starts at the full rate.
        start_factor: factor at step 0 of the warm-up.
        power: exponent of the decay.

    Raises:
        ValueError: `total` is not positive, or the warm-up does not end before the run does.
    """
    if total <= 0:
        raise ValueError(f"total is {total} steps; a schedule needs at least one")
    if not 0 <= warmup < total:
        raise ValueError(
            f"warmup is {warmup} steps of {total} in all; it must end before the run does: "
            f"shorten it (see fit_warmup) or train longer"
        )
    if warmup and step <= warmup:
        progress = step / warmup
        return start_factor * (1 - progress) + progress
    return max(0.0, 1 - (step - warmup) / (total - warmup)) ** power


def fit_warmup(warmup: int, total: int) -> int:
    """The warm-up that a run of `total` steps takes: `warmup`, but never more than a tenth of the run.

    The published 500 iterations are 6 % of its CamVid run; a run of minutes would otherwise end while still warming up.
    """
    return min(warmup, total // 10)


def warmup_poly_schedule(
    optimizer: Optimizer, *, total: int, warmup: int, start_factor: float = 1 / 3, power: float = 0.9
) -> LambdaLR:
    """`warmup_poly` as a torch scheduler; call `.step()` after every optimizer step.

    Every parameter group keeps its own base rate, so an encoder with a smaller one follows the same curve.
    """
    factor = partial(warmup_poly, total=total, warmup=warmup, start_factor=start_factor, power=power)
    return LambdaLR(optimizer, factor)
