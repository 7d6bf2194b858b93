"""What the inspector looks at and with: pictures of a dataset, a file or an upload, and named models."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from s2fpn_lib.checkpoint import load_model, released_names
from s2fpn_lib.data import Protocol, SegmentationDataset
from s2fpn_lib.evaluate import at_size
from s2fpn_lib.model import S2FPN
from s2fpn_lib.workbench.media import MediaError, read_picture
from s2fpn_lib.workbench.predict import network_size
from s2fpn_lib.workbench.provenance import checkpoint_provenance


@dataclass(frozen=True, eq=False)
class NamedModel:
    """A model with what tells it from others: a name and its provenance (see `checkpoint_provenance`)."""

    name: str
    model: S2FPN
    provenance: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture as the network sees it.

    Attributes:
        name: its file's or sample's.
        image: (3, H, W) uint8.
        own_size: (height, width) before it was scaled.
        label: (H, W) uint8 ids, where there are any.
    """

    name: str
    image: Tensor
    own_size: tuple[int, int]
    label: Tensor | None = None

    def labeled(self, ids: Tensor | None) -> Picture:
        """With the label, which is as large as the picture was; ValueError if not. None: without."""
        if ids is None:
            return replace(self, label=None)
        if tuple(ids.shape) != self.own_size:
            raise ValueError(
                f"the label is {ids.shape[0]}x{ids.shape[1]} and the picture {self.own_size[0]}x{self.own_size[1]} "
                "(height x width): give the label of this picture"
            )
        size = self.image.shape[-2:]
        resized = F.interpolate(ids[None, None].float(), size=size, mode="nearest-exact")[0, 0]
        return replace(self, label=resized.to(torch.uint8))


def opened_model(path_or_name: str | Path, *, device: torch.device | str = "cpu", **config: Any) -> NamedModel:
    """What `load_model` takes, a released weight under its name, others named by folder and file; config: only for a
    published .pth."""
    model = load_model(path_or_name, device=device, **config)
    provenance = checkpoint_provenance(path_or_name, model.config)
    own = provenance["checkpoint"].removesuffix(".safetensors")
    return NamedModel(path_or_name if path_or_name in released_names() else own, model, provenance)


def scaled_picture(
    name: str, image: Tensor, label: Tensor | None, size: str | Sequence[int], protocol: Protocol
) -> Picture:
    """A (3, h, w) uint8 image with its label, scaled as `network_size` says: size is "protocol", "own" or (h, w)."""
    own = tuple(image.shape[-2:])
    return Picture(name, at_size(image, network_size(own, size, protocol)), own).labeled(label)


def dataset_picture(dataset: SegmentationDataset, index: int, size: str | Sequence[int], protocol: Protocol) -> Picture:
    """The dataset's image `index` from 0, with its label if it has the protocol's classes; IndexError otherwise."""
    if not 0 <= index < len(dataset):
        raise IndexError(f"{dataset.name} {dataset.split} has the images 0 to {len(dataset) - 1}, not {index}")
    image, label = dataset[index]
    alike = dataset.protocol.classes == protocol.classes
    return scaled_picture(dataset.names[index], image, label if alike else None, size, protocol)


def file_picture(path: str | Path, label: str | Path | None, size: str | Sequence[int], protocol: Protocol) -> Picture:
    """A picture file and optionally its label file; MediaError and ValueError as `read_picture`, `read_label` say."""
    path = Path(path).expanduser()
    ids = read_label(Path(label).expanduser(), protocol) if label else None
    return scaled_picture(path.name, read_picture(path), ids, size, protocol)


def uploaded_picture(upload: Mapping[str, Any], size: str | Sequence[int], protocol: Protocol) -> Picture:
    """One entry of a FileUpload's value: {"name": ..., "content": bytes}."""
    image = _from_upload(upload, read_picture)
    return scaled_picture(upload["name"], image, None, size, protocol)


def uploaded_label(upload: Mapping[str, Any], protocol: Protocol) -> Tensor:
    """The same for a label."""
    return _from_upload(upload, lambda path: read_label(path, protocol))


def read_label(path: str | Path, protocol: Protocol) -> Tensor:
    """(H, W) uint8 ids of a label PNG: grey or palette values are train ids, RGB the protocol's colours.

    255 and colours that no class has become the protocol's ignore id. Raises MediaError for a file that is no picture
    and ValueError for ids that the protocol has not.
    """
    try:
        with Image.open(path) as picture:
            pixels = np.asarray(picture if picture.mode in ("L", "P") else picture.convert("RGB"))
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged files
        raise MediaError(f"{path}: no readable label ({str(error) or type(error).__name__})") from error
    if pixels.ndim == 3:
        ids = np.full(pixels.shape[:2], protocol.ignore_id, np.uint8)
        for class_id, color in enumerate(protocol.palette):
            ids[(pixels == color).all(-1)] = class_id
        if (ids == protocol.ignore_id).all():
            raise ValueError(f"{path}: none of its colours is one of {protocol.name}'s; give a PNG of train ids")
        return torch.from_numpy(ids)
    ids = np.where(pixels == 255, protocol.ignore_id, pixels).astype(np.uint8)
    unknown = sorted(set(np.unique(ids).tolist()) - set(protocol.label_ids))
    if unknown:
        raise ValueError(
            f"{path}: holds {unknown[:5]}, but the train ids of {protocol.name} are 0 to {protocol.num_classes - 1} "
            f"and {protocol.ignore_id} or 255 for what is not labelled"
        )
    return torch.from_numpy(ids)


def _from_upload(upload: Mapping[str, Any], read: Any) -> Tensor:
    """What `read` makes of an uploaded file, which needs one on the disk; errors name the file as its owner does."""
    name = Path(upload["name"]).name
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(bytes(upload["content"]))
        try:
            return read(path)
        except ValueError as error:
            raise type(error)(str(error).replace(f"{folder}/", "")) from None
