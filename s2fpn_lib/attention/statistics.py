"""What attention does over a whole split, in numbers: how far it reaches, how sharp it is, whether it matters at all.

    statistics = attention_statistics(model, open_dataset("camvid", split="val"), limit=50)
    statistics.summary()

Only some numbers an image are kept, so that a split of any length fits into memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from s2fpn_lib.attention.recorder import AttentionRecorder, Capture, GFUCapture, LevelCapture
from s2fpn_lib.data import SegmentationDataset, evenly_spaced
from s2fpn_lib.evaluate import at_size
from s2fpn_lib.model import S2FPN
from s2fpn_lib.model.modes import evaluation_mode
from s2fpn_lib.model.ssam import ColumnAttention, StripGate

# Below this share of the blend, the strips' maps explain next to nothing of the prediction.
HARDLY_ANY = 0.01
# Pixels whose distributions over columns are in memory at a time
PIXELS_AT_ONCE = 16384


@dataclass(frozen=True)
class AttentionStatistics:
    """Numbers of every image and level.

    Attributes:
        images: one row an image and level: image, level, gamma, and what `level_statistics` gives.
        crb_by_class: levels x classes, the mean CRB weight in the regions of a class, every channel weighted by its
            mean activation |R| there: how much of a class's features CRB lets pass. NaN where the class does not occur.
    """

    images: pd.DataFrame
    crb_by_class: pd.DataFrame

    def summary(self) -> pd.DataFrame:
        """One row a level: mean and standard deviation over the images, columns (statistic, mean or std)."""
        numbers = self.images.set_index("level").drop(columns="image").dropna(axis="columns", how="all")
        if numbers.empty:
            return pd.DataFrame(index=numbers.index.unique())
        return numbers.groupby("level", sort=False).agg(["mean", "std"])


def level_statistics(level: LevelCapture) -> dict[str, Tensor]:
    """Statistics of one level, each (B,); nothing for what is switched off.

    attended_share: see `LevelCapture`. gate1_mean, gate1_std, gate2_mean, gate2_std: of each gate over its map.
    entropy, reach (v2): see `column_statistics`. gate1_concentration, gate2_concentration (v1): 1 - H(p) / ln L of the
    gate over the columns, made a distribution p: 0 for an even gate, 1 for a gate that is open in one column alone.
    crb_mean, crb_std: of the channel weights.
    """
    found: dict[str, Tensor] = {}
    if level.gates is not None:
        found["attended_share"] = level.attended_share
        for k in (0, 1):
            gate = level.gates[:, k].flatten(1)
            found[f"gate{k + 1}_mean"] = gate.mean(1)
            found[f"gate{k + 1}_std"] = gate.std(1, correction=0)
            if level.query is None:
                found[f"gate{k + 1}_concentration"] = 1 - _normalized_entropy(gate / gate.sum(1, keepdim=True))
    if level.query is not None:
        found["entropy"], found["reach"] = column_statistics(level)
    if level.crb is not None:
        found |= {"crb_mean": level.crb.mean(1), "crb_std": level.crb.std(1, correction=0)}
    return found


def column_statistics(level: LevelCapture) -> tuple[Tensor, Tensor]:
    """Entropy and reach of v2's distributions over columns, means over the pixels, each (B,).

    Entropy: H(P) / ln L, 0 for one column and 1 for all alike. Reach: mean over P of |column - own column| in image
    widths (rows and image heights for strip_axis="width"); even attention has (L^2 - 1) / (3 L^2), about a third.
    """
    h, w = level.size
    keys = level.strip_max
    length = keys.shape[2]
    position = torch.arange(length, device=keys.device)
    distance = (position[:, None] - position[None, :]).abs() / length  # (L, L): from own to attended
    entropy = keys.new_zeros(len(keys))
    reach = keys.new_zeros(len(keys))
    rows = max(1, PIXELS_AT_ONCE // w)
    for top in range(0, h, rows):
        query = level.query[:, :, top : top + rows]
        p = ColumnAttention.distribution(query, keys).unflatten(1, query.shape[-2:])  # (B, rows, w, L)
        own = distance if level.strip_axis == "height" else distance[top : top + rows, None]  # (w, L) or (rows, 1, L)
        entropy += _normalized_entropy(p).sum((1, 2))
        reach += (p * own).sum((1, 2, 3))
    return entropy / (h * w), reach / (h * w)


def coarse_share(gfu: GFUCapture) -> Tensor:
    """(B, h, w) mean |s1 f'| / (mean |s1 f'| + mean |s2 p'|) over the channels (v1 has no gates): how much of what GFU
    puts together at a pixel comes down from the coarser level."""
    context, fine = gfu.context, gfu.fine
    if gfu.s1 is not None:
        context, fine = gfu.s1 * context, gfu.s2 * fine
    context, fine = context.abs().mean(1).expand(fine.shape[0], *fine.shape[-2:]), fine.abs().mean(1)
    return context / (context + fine).clamp_min(torch.finfo(torch.float32).tiny)


def crb_passes(level: LevelCapture, label: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Sums over the pixels of each class, of w |R| and of |R| over all channels: two (num_classes,) float64.

    label: (B, H, W) ids of any size, read at the centre of each of the level's pixels; other ids are left out.
    """
    ids = F.interpolate(label[:, None].float(), size=level.size, mode="nearest-exact")[:, 0].long()  # (B, h, w)
    activation = level.refined.abs().double()
    weighted = (activation * level.crb[:, :, None, None]).sum(1)
    known = ids < num_classes
    passed, all_of_it = (
        torch.zeros(num_classes, dtype=torch.float64, device=ids.device).index_add_(0, ids[known], values[known])
        for values in (weighted, activation.sum(1))
    )
    return passed, all_of_it


@torch.inference_mode()
def attention_statistics(
    model: S2FPN,
    dataset: SegmentationDataset,
    *,
    limit: int | None = None,
    device: torch.device | str | None = None,
) -> AttentionStatistics:
    """Runs the model over a split, images at the protocol's size, and keeps statistics of every image and level.

    limit: only so many images, evenly spread. device: where to run; None leaves the model where it is.
    """
    if device is not None:
        model = model.to(device)
    protocol = dataset.protocol
    rows: list[dict[str, Any]] = []
    sums: dict[str, list[Tensor]] = {}
    with evaluation_mode(model), AttentionRecorder(model) as recorder:
        for index in evenly_spaced(len(dataset), limit):
            image, label = dataset[index]
            x = model.preprocess(at_size(image, protocol.size)[None])
            model(x)
            for level in recorder.capture.levels:
                numbers = {key: value.item() for key, value in level_statistics(level).items()}
                rows.append({"image": dataset.names[index], "level": level.name, "gamma": level.gamma, **numbers})
                if level.crb is not None:
                    both = crb_passes(level, label[None].to(x.device), protocol.num_classes)
                    sums[level.name] = [a + b for a, b in zip(sums.get(level.name, (0, 0)), both, strict=True)]
    passes = {name: (passed / total).cpu().numpy() for name, (passed, total) in sums.items()}
    return AttentionStatistics(
        images=pd.DataFrame(rows),
        crb_by_class=pd.DataFrame.from_dict(passes, orient="index", columns=list(protocol.classes)),
    )


def gamma_statement(capture: Capture) -> pd.DataFrame:
    """One row a level with SSAM: gamma, the strips' share of the blend (mean of the batch), and what follows."""
    rows = {}
    for level in capture.levels:
        if level.gamma is not None:
            share = level.attended_share.mean().item()
            rows[level.name] = {"gamma": level.gamma, "attended_share": share, "influence": _influence(level, share)}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["gamma", "attended_share", "influence"])


def untrained_warning(model: S2FPN) -> str:
    """A sentence for a model whose gamma still has its initial value at every level, else an empty text."""
    gammas = [module.gamma.item() for module in model.modules() if isinstance(module, StripGate)]
    start = float(model.config.get("gamma_init", 0.0))
    if not gammas or any(not math.isclose(gamma, start, abs_tol=1e-6) for gamma in gammas):
        return ""
    return (
        f"This network is untrained: gamma still has its initial value {start:g} at every level. Its attention maps "
        "are those of random weights, and say nothing about the method"
    )


def _influence(level: LevelCapture, share: float) -> str:
    if level.gamma == 0:
        return "none: gamma is 0, the maps do not reach the prediction"
    if share < HARDLY_ANY:
        return f"hardly any: the strips make up less than {HARDLY_ANY:.0%} of the blend"
    return f"the strips make up {share:.1%} of the blend"


def _normalized_entropy(p: Tensor) -> Tensor:
    """H(p) / ln L over the last dimension of length L; 0 for L = 1."""
    return torch.special.entr(p).sum(-1) / max(math.log(p.shape[-1]), torch.finfo(torch.float32).tiny)
