"""Statistics of the attention over a split, and which image columns, at which levels, speak for a class at a pixel.

For the latter, the entries of a column in the two strips of a level (v1: average and maximum, v2: value and key) are
replaced by their mean over all columns: the network no longer knows what is special about this column at this level.
What the pixel's logit of the class loses is the column's contribution, positive where the column speaks for the class.
"""

import math
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2fpn_lib.attention.recorder import AttentionRecorder, GFUCapture, LevelCapture
from s2fpn_lib.data import SegmentationDataset, evenly_spaced
from s2fpn_lib.model import S2FPN, build_model
from s2fpn_lib.model.ssam import ColumnAttention, StripGate
from s2fpn_lib.model.tta import at_size, evaluation_mode

NEGLIGIBLE_SHARE = 0.01  # share of the blend below which the strips have almost no influence on the prediction
PIXELS_AT_ONCE = 16384  # pixels whose distributions over columns are in memory at a time


@dataclass(frozen=True)
class AttentionStatistics:
    """Statistics of the images of a split."""

    images: pd.DataFrame  # one row per image and level: image, level, gamma, and the columns of `level_statistics`
    # levels x classes: the share of a class's features that passes CRB, that is the mean weight with channels weighted
    # by their mean activation |R| in the regions of the class; NaN where the class is absent
    crb_by_class: pd.DataFrame

    def summary(self) -> pd.DataFrame:
        """One row per level: mean and standard deviation over the images, columns (statistic, mean or std)."""
        numbers = self.images.set_index("level").drop(columns="image").dropna(axis="columns", how="all")
        levels = numbers.groupby("level", sort=False)
        return levels.agg(["mean", "std"]) if len(numbers.columns) else pd.DataFrame(index=numbers.index.unique())


def level_statistics(level: LevelCapture) -> dict[str, Tensor]:
    """Statistics of one level, each (B,); parts that are switched off have none.

    gate1_mean, gate1_std, gate2_mean, gate2_std: of each gate over its map. gate1_concentration, gate2_concentration
    (v1): 1 - H(p) / ln L, with p the gate normalized to sum 1 over the columns: 0 for a constant gate, 1 for one that
    is open in a single column. entropy, reach (v2): see `column_statistics`. crb_mean, crb_std: of the channel weights.
    """
    found: dict[str, Tensor] = {}
    if level.gates is not None:
        found["attended_share"] = level.attended_share
        for k, gate in enumerate(level.gates.flatten(2).unbind(1), 1):
            found |= {f"gate{k}_mean": gate.mean(1), f"gate{k}_std": gate.std(1, correction=0)}
            if level.query is None:
                found[f"gate{k}_concentration"] = 1 - _normalized_entropy(gate / gate.sum(1, keepdim=True))
    if level.query is not None:
        found["entropy"], found["reach"] = column_statistics(level)
    if level.crb is not None:
        found |= {"crb_mean": level.crb.mean(1), "crb_std": level.crb.std(1, correction=0)}
    return found


def column_statistics(level: LevelCapture) -> tuple[Tensor, Tensor]:
    """Entropy and reach of the distributions P over columns (v2), averaged over the pixels, each (B,).

    Entropy: H(P) / ln L, from 0 (a single column) to 1 (uniform). Reach: mean over P of the distance from the pixel's
    column to the attended one, in image widths (strip_axis="width": heights); the uniform one has (L^2 - 1) / (3 L^2).
    """
    (h, w), keys = level.size, level.strip_max
    entries = torch.arange(keys.shape[2], device=keys.device)
    pixels = torch.arange(h * w, device=keys.device)
    own = pixels % w if level.strip_axis == "height" else pixels // w  # the entry of each pixel
    entropy, reach = keys.new_zeros(2, len(keys))
    queries = level.query.flatten(2)  # (B, C, HW)
    for query, position in zip(queries.split(PIXELS_AT_ONCE, 2), own.split(PIXELS_AT_ONCE), strict=True):
        p = ColumnAttention.distribution(query, keys)  # (B, pixels, L)
        distance = (position[:, None] - entries).abs() / len(entries)  # (pixels, L)
        entropy += _normalized_entropy(p).sum(1)
        reach += (p * distance).sum((1, 2))
    return entropy / (h * w), reach / (h * w)


def coarse_share(gfu: GFUCapture) -> Tensor:
    """(B, h, w) share of the coarser level in GFU's terms, by channel means: |s1 f'| / (|s1 f'| + |s2 p'|)."""
    s1, s2 = (1, 1) if gfu.s1 is None else (gfu.s1, gfu.s2)
    context, fine = (s1 * gfu.context).abs().mean(1), (s2 * gfu.fine).abs().mean(1)  # (B, 1, 1) context with gfu_pool
    return context / (context + fine).clamp_min(torch.finfo(torch.float32).tiny)


def crb_passes(level: LevelCapture, label: Tensor, num_classes: int) -> Tensor:
    """(2, num_classes): sums of w |R| and |R| over channels and the pixels of each class, with w CRB's weights.

    label: (B, H, W) ids of any size, read at the center of each pixel of the level; ids of no class are left out.
    """
    ids = F.interpolate(label[:, None].float(), size=level.size, mode="nearest-exact")[:, 0].long()  # (B, h, w)
    of_class = F.one_hot(ids.clamp(max=num_classes), num_classes + 1)[..., :num_classes].double()  # (B, h, w, K)
    activation = level.refined.abs().double()
    weighted = (activation * level.crb[:, :, None, None]).sum(1)
    return torch.einsum("nbhw,bhwk->nk", torch.stack([weighted, activation.sum(1)]), of_class)


@torch.inference_mode()
def attention_statistics(model: S2FPN, dataset: SegmentationDataset, limit: int | None = None) -> AttentionStatistics:
    """The statistics of `limit` evenly spaced images of a split (None: of all), at the protocol's size."""
    protocol, rows, sums = dataset.protocol, [], {}
    with evaluation_mode(model), AttentionRecorder(model) as recorder:
        for index in evenly_spaced(len(dataset), limit):
            image, label = dataset[index]
            model(model.preprocess(at_size(image, protocol.size)[None]))
            for level in recorder.capture.levels:
                numbers = {key: value.item() for key, value in level_statistics(level).items()}
                rows.append({"image": dataset.names[index], "level": level.name, "gamma": level.gamma, **numbers})
                if level.crb is not None:
                    passes = crb_passes(level, label[None].to(level.crb.device), protocol.num_classes)
                    sums[level.name] = sums.get(level.name, 0) + passes
    shares = {name: (passed / total).cpu().numpy() for name, (passed, total) in sums.items()}
    by_class = pd.DataFrame.from_dict(shares, orient="index", columns=list(protocol.classes))
    return AttentionStatistics(pd.DataFrame(rows), by_class)


def untrained_warning(model: S2FPN) -> str:
    """A warning for a model whose gamma has its initial value at every level; an empty string for other models."""
    gammas = [module.gamma.item() for module in model.modules() if isinstance(module, StripGate)]
    start = float(model.config.get("gamma_init", 0.0))
    if not gammas or any(not math.isclose(gamma, start, abs_tol=1e-6) for gamma in gammas):
        return ""
    reason = f"This network is untrained: gamma still has its initial value {start:g} at every level"
    return f"{reason}. Its attention maps come from random weights and say nothing about the method"


def switched(model: S2FPN, **switches: Any) -> S2FPN:
    """A new network with the weights of `model` and other switches (see `Switches`), on its device, in evaluation mode.

    It tells what a part contributes to this network. That is not an ablation: a network that is trained without a part
    learns to do without it. Raises ValueError if the part's substitute has weights of its own (apf=False).
    """
    other = build_model(**{**model.config, **switches})
    state, wanted = model.state_dict(), other.state_dict()
    if lacking := [name for name, value in wanted.items() if name not in state or state[name].shape != value.shape]:
        what = ", ".join(f"{name}={value}" for name, value in switches.items())
        raise ValueError(f"{what} needs weights this network lacks ({lacking[0]}): train a network with this switch")
    other.load_state_dict({name: state[name] for name in wanted})
    other.metadata = getattr(model, "metadata", {})
    return other.to(next(model.parameters()).device).eval()


def _normalized_entropy(p: Tensor) -> Tensor:
    """H(p) / ln L over the last dimension of length L; 0 for L = 1."""
    return torch.special.entr(p).sum(-1) / max(math.log(p.shape[-1]), torch.finfo(torch.float32).tiny)


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
