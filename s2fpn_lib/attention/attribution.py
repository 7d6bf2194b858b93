"""Attribution: which image columns, at which levels, speak for a class at a pixel, in both revisions.

The entries of a column in the two strips of a level (v1: average and maximum, v2: value and key) are replaced by their
mean over all columns: the network no longer knows what is special about this column at this level. What the pixel's
logit of the class loses is the column's contribution. It is positive where the column speaks for the class.
"""

from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn

from s2fpn_lib.model import S2FPN
from s2fpn_lib.model.modes import evaluation_mode
from s2fpn_lib.model.ssam import ColumnAttention, StripGate


@torch.inference_mode()
def occlusion(
    model: S2FPN, image: Tensor, pixel: tuple[int, int], class_id: int, *, groups: int = 15, batch: int = 4
) -> tuple[float, dict[str, Tensor], dict[str, float]]:
    """The logit of a class at pixel (y, x) of a (3, H, W) uint8 image, and what it loses without groups of columns.

    Returns the logit; for each level ("apf1", ...) the contributions (n,) of n = min(groups, L) groups of neighboring
    columns from left to right (strip_axis="width": of rows from top to bottom); and that of all its columns together,
    which is not their sum, because columns stand in for each other. Runs the decoder once per group.
    """
    single, together = {}, {}
    with evaluation_mode(model):
        x = model.preprocess(image[None])
        features = model.encoder(x)  # the strips do not influence it
        logit = model(x)[0, class_id, *pixel].item()
        for (name, modules, dim), feature in zip(_strips(model), reversed(features), strict=False):
            length = feature.shape[dim]
            group = torch.arange(length, device=x.device) * min(groups, length) // length  # of each column
            hidden = torch.cat([group == group.unique()[:, None], torch.ones_like(group)[None].bool()])
            parts = [_logits(model, x, features, part, modules, dim) for part in hidden.split(batch)]
            lost = logit - torch.cat([part[:, class_id, *pixel] for part in parts]).cpu()
            single[name], together[name] = lost[:-1], lost[-1].item()
    return logit, single, together


def gradient(model: S2FPN, image: Tensor, pixel: tuple[int, int], class_id: int) -> dict[str, Tensor]:
    """{level: (L,) contributions of single columns, to first order}, from one backward pass; see `occlusion`."""
    entries: dict[tuple[str, int], Tensor] = {}
    with torch.enable_grad(), evaluation_mode(model), ExitStack() as hooks:
        for name, modules, dim in _strips(model):
            for module in modules:
                keep = partial(lambda key, module, args, out: entries.update({(*key, module): out}), (name, dim))
                hooks.enter_context(module.register_forward_hook(keep))
        logit = model(model.preprocess(image[None]))[0, class_id, *pixel]
        slopes = torch.autograd.grad(logit, list(entries.values())) if entries else ()
    found: dict[str, Tensor] = {}
    for ((name, dim, _), entry), slope in zip(entries.items(), slopes, strict=True):
        change = slope * (entry - entry.mean(dim, keepdim=True)).detach()
        found[name] = found.get(name, 0) + change.sum(1).flatten().cpu()  # (1, C, 1, L) -> (L,)
    return found


def _strips(model: S2FPN) -> list[tuple[str, tuple[nn.Module, nn.Module], int]]:
    """Level, the two modules whose outputs (B, C, 1, L) are the entries of its strips, and the dimension of L."""
    found = []
    for number, level in enumerate(model.apf_levels, 1):
        for gate in (module for module in level.modules() if isinstance(module, StripGate)):
            second = gate.value if isinstance(gate, ColumnAttention) else gate.bn_avg
            found.append((f"apf{number}", (gate.bn_max, second), 5 - gate.pooled_dim))
    return found


def _logits(
    model: S2FPN, x: Tensor, features: list[Tensor], hidden: Tensor, modules: tuple[nn.Module, ...], dim: int
) -> Tensor:
    """(n, K, H, W) logits of an image x with n different choices (n, L) of hidden columns."""
    mask = hidden[:, None, None, :].transpose(3, dim)  # (n, 1, 1, L), or (n, 1, L, 1)

    def hide(module: nn.Module, args: tuple, out: Tensor) -> Tensor:
        return torch.where(mask, out.mean(dim, keepdim=True), out)

    with ExitStack() as hooks:
        for module in modules:
            hooks.enter_context(module.register_forward_hook(hide))
        model.encoder.forward = lambda _: [each.expand(len(hidden), -1, -1, -1) for each in features]
        hooks.callback(delattr, model.encoder, "forward")
        return model(x)
