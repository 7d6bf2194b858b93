"""Predictions of several networks for the same images, side by side.

An evaluation's folder keeps a few samples (image, label, prediction) in samples.npz, so that the report can compare
networks whose weights or data no longer exist.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from s2fpn_lib.data import SegmentationDataset, get_protocol
from s2fpn_lib.runs import atomic_file
from s2fpn_lib.viz.images import as_array, colorize, image_grid, predicted
from s2fpn_lib.viz.style import styled

SAMPLES = "samples.npz"


@dataclass(frozen=True)
class Sample:
    """One scored image: (3, H, W) uint8, label and prediction (H, W) uint8, and the protocol's name."""

    image: Tensor
    label: Tensor
    prediction: Tensor
    protocol: str


def save_samples(
    folder: str | Path, model: nn.Module, dataset: SegmentationDataset, indices: Sequence[int], **views: Any
) -> Path:
    """Predicts the chosen samples as `evaluate` does (views: see `predict_logits`) and writes them to samples.npz."""
    arrays: dict[str, np.ndarray] = {"protocol": np.array(dataset.protocol.name)}
    for index in indices:
        image, label = dataset[index]
        prediction = predicted(model, image, dataset.protocol.size, **views)
        name = dataset.names[index]
        arrays |= {f"image:{name}": image.numpy(), f"label:{name}": label.numpy()}
        arrays[f"prediction:{name}"] = prediction.numpy()
    path = Path(folder) / SAMPLES
    with atomic_file(path) as file:
        np.savez_compressed(file, **arrays)
    return path


def load_samples(folder: str | Path) -> dict[str, Sample]:
    """{sample id: sample} of the samples.npz in `folder`; empty if there is none.

    Raises ValueError for a damaged file; the message names it.
    """
    path = Path(folder) / SAMPLES
    if not path.exists():
        return {}
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it, or evaluate again") from error
    names = [name.partition(":")[2] for name in arrays if name.startswith("image:")]
    return {
        name: Sample(
            *(torch.from_numpy(arrays[f"{part}:{name}"]) for part in ("image", "label", "prediction")),
            str(arrays["protocol"]),
        )
        for name in names
    }


@styled
def compare(networks: Mapping[str, Mapping[str, Sample]], *, count: int = 3, width: float = 11.0) -> Figure:
    """Image | label | one prediction per network, for the first `count` images that all networks have.

    networks: {name: samples of `load_samples`}, all of one protocol, in the order of the columns.

    Raises ValueError if the networks have no image in common, or more than one protocol.
    """
    protocols = {sample.protocol for samples in networks.values() for sample in samples.values()}
    if len(protocols) > 1:
        raise ValueError(f"refusing to compare pictures of {len(protocols)} protocols: {', '.join(sorted(protocols))}")
    shared = _common_names(networks)[:count]
    if not shared:
        raise ValueError("these networks have no image in common")
    protocol = get_protocol(protocols.pop())
    first = next(iter(networks.values()))
    rows = [
        [
            as_array(first[name].image),
            colorize(first[name].label, protocol),
            *(colorize(samples[name].prediction, protocol) for samples in networks.values()),
        ]
        for name in shared
    ]
    return image_grid(rows, ["image", "label", *networks], shared, protocol, width)


def compare_evaluations(names: Mapping[str, str], root: str | Path) -> Figure | None:
    """`compare` for evaluations under `root` that kept samples; None if fewer than two have an image in common.

    names: {name: folder of the evaluation}, of `evaluation_names`.
    """
    kept = {name: samples for name, folder in names.items() if (samples := load_samples(Path(root) / folder))}
    return compare(kept) if len(kept) > 1 and _common_names(kept) else None


def _common_names(networks: Mapping[str, Mapping[str, Sample]]) -> list[str]:
    """Ids of the images that every network has, in the first one's order."""
    first, *others = networks.values()
    return [name for name in first if all(name in other for other in others)]
