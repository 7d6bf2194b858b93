"""Predictions of several networks for the same images, side by side, also after their weights or data are gone."""

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from s2fpn_lib.data import SegmentationDataset, get_protocol
from s2fpn_lib.runs import atomic_file
from s2fpn_lib.viz.images import as_array, colorize, image_grid, predicted

SAMPLES = "samples.npz"
MOST_BYTES = 2_000_000_000  # of the arrays in samples.npz, whatever the size of the file
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error)
SHOWN = 3  # images per comparison


class Sample(NamedTuple):
    """One scored image: (3, H, W) uint8, label and prediction (H, W) uint8, and the protocol's name."""

    image: Tensor
    label: Tensor
    prediction: Tensor
    protocol: str


def save_samples(
    folder: str | Path, model: nn.Module, dataset: SegmentationDataset, indices: Sequence[int], **views: Any
) -> None:
    """Predicts the chosen samples as `evaluate` does (views: see `predict_logits`) and writes them to samples.npz."""
    arrays: dict[str, Any] = {"protocol": np.array(dataset.protocol.name)}
    for index in indices:
        name = dataset.names[index]
        image, label = dataset[index]
        prediction = predicted(model, image, dataset.protocol.size, **views)
        arrays |= {f"image:{name}": image, f"label:{name}": label, f"prediction:{name}": prediction}
    with atomic_file(Path(folder) / SAMPLES) as file:
        np.savez_compressed(file, **arrays)


def load_samples(folder: str | Path, skipped: dict[str, str] | None = None) -> dict[str, Sample]:
    """{sample id: sample} of the samples.npz in `folder`, if any; ValueError, or an entry in `skipped`, if damaged."""
    path = Path(folder) / SAMPLES
    if not path.exists():
        return {}
    parts: dict[str, dict[str, Tensor]] = {}
    try:
        if not path.is_file() or sum(each.file_size for each in zipfile.ZipFile(path).infolist()) > MOST_BYTES:
            raise ValueError(f"it is not a regular file, or holds more than {MOST_BYTES} bytes")
        with np.load(path, allow_pickle=False) as stored:
            protocol = get_protocol(str(stored["protocol"])).name
            for key in sorted({*stored.files} - {"protocol"}, key=stored.files.index):
                part, name = key.split(":", 1)
                parts.setdefault(name, {})[part] = torch.from_numpy(stored[key])
        samples = {name: Sample(**each, protocol=protocol) for name, each in parts.items()}
        for image, label, prediction, _ in samples.values():
            if torch.cat([image, label[None], prediction[None]]).dtype != torch.uint8 or len(image) != 3:
                raise ValueError("an image, label, or prediction holds no bytes")
    except (EOFError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError, *_ZIP_ERRORS) as error:
        if skipped is None:
            raise ValueError(f"{path} is damaged ({error}): delete it, or evaluate again") from error
        skipped[str(path)] = str(error)
        return {}
    return samples


def compare_evaluations(
    names: Mapping[str, str], root: str | Path, skipped: dict[str, str] | None = None
) -> Figure | None:
    """Image | label | one prediction per network, for the first `SHOWN` images that all evaluations with samples kept.

    names: {name: folder of the evaluation under `root`}. Returns None if fewer than two evaluations have an image in
    common. Raises ValueError for several protocols. skipped: as in `load_samples`.
    """
    kept = {name: samples for name, folder in names.items() if (samples := load_samples(Path(root) / folder, skipped))}
    protocols = sorted({sample.protocol for samples in kept.values() for sample in samples.values()})
    if len(protocols) > 1:
        raise ValueError(f"refusing to compare pictures of {len(protocols)} protocols: {', '.join(protocols)}")
    first, *others = kept.values() or [{}]
    shared = [name for name in first if all(name in other for other in others)][:SHOWN]
    if not others or not shared:
        return None
    protocol = get_protocol(protocols[0])
    rows = []
    for name in shared:
        predictions = [colorize(samples[name].prediction, protocol) for samples in kept.values()]
        rows.append([as_array(first[name].image), colorize(first[name].label, protocol), *predictions])
    return image_grid(rows, ["image", "label", *kept], shared, protocol, width=11.0)
