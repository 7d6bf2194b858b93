"""Exponential moving average of a model's weights (Polyak averaging), used for validation and for what is saved."""

import copy

import torch
from torch import nn


class ExponentialMovingAverage:
    """Keeps `self.model`, an eval-mode copy of `model` whose weights follow the trained ones.

    average <- d_t * average + (1 - d_t) * weights,   d_t = min(decay, (1 + t) / (10 + t))   at step t

    The ramp keeps the random initialisation out of the average of a short run. Running statistics of BatchNorm are
    averaged too, so that they belong to the averaged weights; integer buffers are copied.

    Args:
        model: the trained model; its modules must not be replaced afterwards.
        decay: the decay reached after the ramp, in (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float):
        if not 0 < decay < 1:
            raise ValueError(f"ema decay is {decay}; it must lie between 0 and 1 (0.999 is usual, leave EMA off for 0)")
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        pairs = list(zip(self.model.state_dict().values(), model.state_dict().values(), strict=True))
        self._averaged, self._weights = self._lists(pairs, floating=True)
        self._copies, self._originals = self._lists(pairs, floating=False)

    @staticmethod
    def _lists(pairs: list, *, floating: bool) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        chosen = [(mine, theirs) for mine, theirs in pairs if mine.is_floating_point() == floating]
        return [mine for mine, _ in chosen], [theirs for _, theirs in chosen]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights after optimizer step `step` (0 for the first), without a host sync."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averaged, self._weights, 1 - decay)
        if self._copies:
            torch._foreach_copy_(self._copies, self._originals)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return self.model.state_dict()

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.model.load_state_dict(state)
