"""A trained network with some of its parts switched: what a part contributes to this very network.

That is not an ablation. A network trained without a part learns to do without it; here the rest still counts on it.
"""

from __future__ import annotations

import copy
from typing import Any

from s2fpn_lib.model import S2FPN, build_model
from s2fpn_lib.model.ssam import StripGate


def switched(model: S2FPN, **switches: Any) -> S2FPN:
    """A new network with `model`'s weights under other switches (see `Switches`), on its device, in eval mode.

    Raises ValueError where the substitute has weights of its own, which only training can give (apf=False).
    """
    other = build_model(**{**model.config, **switches})
    state = model.state_dict()
    wanted = other.state_dict()
    lacking = [name for name, value in wanted.items() if name not in state or state[name].shape != value.shape]
    if lacking:
        what = ", ".join(f"{name}={value}" for name, value in switches.items())
        raise ValueError(
            f"{what} needs weights that this network does not have ({lacking[0]} and {len(lacking) - 1} more): train a "
            "network with this switch and compare the two checkpoints"
        )
    other.load_state_dict({name: state[name] for name in wanted})
    return other.to(next(model.parameters()).device).eval()


def without_strips(model: S2FPN) -> S2FPN:
    """A copy of `model` with gamma 0 at every level, in eval mode: SSAM stays, but no strip reaches the prediction.

    Between this and `switched(model, ssam=False)` lies what else SSAM holds; in v1 that is nothing.
    """
    silent = copy.deepcopy(model).eval()
    for module in silent.modules():
        if isinstance(module, StripGate):
            module.gamma.data.zero_()
    return silent
