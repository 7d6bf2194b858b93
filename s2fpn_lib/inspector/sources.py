"""The inspector's inputs: images of a dataset, a file, or an upload, and named models."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from s2fpn_lib.checkpoint import load_model, released_names
from s2fpn_lib.data import Protocol, SegmentationDataset
from s2fpn_lib.data.images import read_image, read_label
from s2fpn_lib.evaluate import at_size
from s2fpn_lib.model import S2FPN
from s2fpn_lib.workbench.predict import network_size
from s2fpn_lib.workbench.provenance import checkpoint_provenance


@dataclass(frozen=True, eq=False)
class NamedModel:
    """A model with its name and provenance (see `checkpoint_provenance`)."""

    name: str
    model: S2FPN
    provenance: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Picture:
    """An image as the network sees it.

    Attributes:
        name: name of the file or sample.
        image: (3, H, W) uint8.
        own_size: (height, width) before scaling.
        label: (H, W) uint8 ids, or None.
    """

    name: str
    image: Tensor
    own_size: tuple[int, int]
    label: Tensor | None = None

    def labeled(self, ids: Tensor) -> Picture:
        """The picture with a label of its own size, scaled like the image; ValueError for another size."""
        if tuple(ids.shape) != self.own_size:
            raise ValueError(
                f"the label is {ids.shape[0]}x{ids.shape[1]} and the picture {self.own_size[0]}x{self.own_size[1]} "
                "(height x width): give the label of this picture"
            )
        resized = F.interpolate(ids[None, None].float(), size=self.image.shape[-2:], mode="nearest-exact")[0, 0]
        return replace(self, label=resized.to(torch.uint8))


class Upload(io.BytesIO):
    """One entry of a `FileUpload`'s value, to be read like a file; error messages show its name."""

    def __init__(self, upload: Mapping[str, Any]) -> None:
        super().__init__(bytes(upload["content"]))
        self.name = upload["name"]

    def __str__(self) -> str:
        return self.name


def opened_model(path_or_name: str | Path, *, device: torch.device | str = "cpu", **config: Any) -> NamedModel:
    """What `load_model` loads, named by its released name or by folder and file.

    config: only for a published .pth, see `load_model`.
    """
    model = load_model(path_or_name, device=device, **config)
    provenance = checkpoint_provenance(path_or_name, model.config)
    own = provenance["checkpoint"].removesuffix(".safetensors")
    return NamedModel(path_or_name if path_or_name in released_names() else own, model, provenance)


def dataset_picture(dataset: SegmentationDataset, index: int, size: str | Sequence[int], protocol: Protocol) -> Picture:
    """Image `index` of the dataset, with its label if dataset and protocol have the same classes.

    size: the size that the network sees: "protocol", "own", or (height, width), see `network_size`.
    Raises IndexError for an index outside of the dataset.
    """
    if not 0 <= index < len(dataset):
        raise IndexError(f"{dataset.name} {dataset.split} has the images 0 to {len(dataset) - 1}, not {index}")
    image, label = dataset[index]
    picture = _scaled(dataset.names[index], image, size, protocol)
    return picture.labeled(label) if dataset.protocol.classes == protocol.classes else picture


def file_picture(
    source: str | Path | Upload, label: str | Path | None, size: str | Sequence[int], protocol: Protocol
) -> Picture:
    """An image file or upload, with its label file if there is one. size: as in `dataset_picture`.

    Raises ImageError for a file that cannot be read and ValueError as `label_ids` and `Picture.labeled` do.
    """
    pixels = torch.from_numpy(read_image(_expanded(source))).permute(2, 0, 1)  # (H, W, 3) -> (3, H, W)
    picture = _scaled(Path(str(source)).name, pixels, size, protocol)
    return picture.labeled(label_ids(label, protocol)) if label else picture


def label_ids(source: str | Path | Upload, protocol: Protocol) -> Tensor:
    """(H, W) uint8 ids of a label PNG, which holds train ids or the protocol's colors.

    255, and colors of no class, become the protocol's ignore id. Raises ImageError for a file that cannot be read and
    ValueError for ids or colors that do not belong to the protocol.
    """
    pixels = read_label(_expanded(source))
    if pixels.ndim == 3:
        ids = np.full(pixels.shape[:2], protocol.ignore_id, np.uint8)
        for class_id, color in enumerate(protocol.palette):
            ids[(pixels == color).all(-1)] = class_id
        if (ids == protocol.ignore_id).all():
            raise ValueError(f"{source}: none of its colors is a color of {protocol.name}; give a PNG of train ids")
        return torch.from_numpy(ids)
    ids = np.where(pixels == 255, protocol.ignore_id, pixels).astype(np.uint8)
    unknown = np.setdiff1d(ids, protocol.label_ids).tolist()
    if unknown:
        raise ValueError(
            f"{source}: holds the ids {unknown[:5]}, but the train ids of {protocol.name} are 0 to "
            f"{protocol.num_classes - 1}, and {protocol.ignore_id} or 255 for unlabeled pixels"
        )
    return torch.from_numpy(ids)


def _scaled(name: str, image: Tensor, size: str | Sequence[int], protocol: Protocol) -> Picture:
    own = tuple(image.shape[-2:])
    return Picture(name, at_size(image, network_size(own, size, protocol)), own)


def _expanded(source: str | Path | Upload) -> Path | Upload:
    return source if isinstance(source, Upload) else Path(source).expanduser()
