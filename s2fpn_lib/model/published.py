"""Weights that others published: files read without running their code, and the author's checkpoint layout."""

import csv
import mmap
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn

# The name of the network in the published command lines, and its name here.
PUBLISHED_MODELS = {"SSFPN": "s2fpn18"}

# (regular expression on our name, published name): all that match are applied, from top to bottom.
_RENAMES = list(csv.reader(Path(__file__).with_name("published_names.csv").read_text().splitlines()[1:]))
_HEAD = {"v1": "classifier.fc.conv.", "v2": "seghead.fc.conv."}
# Entries that the published code stores and never uses, besides batch norms and slopes of plain convolutions.
_ALWAYS_UNUSED = re.compile(r".*\.conv_res\.(weight|bias)|.*\.conv_sh\.bias|down[2-5]\..*")


def published_name(name: str, revision: str) -> str:
    """The key of our parameter or buffer `name` in the published checkpoint of `revision`."""
    for pattern, replacement in (*_RENAMES, (r"^head\.", _HEAD[revision])):
        name = re.sub(pattern, replacement, name)
    return name


def load_published(model: nn.Module, source: str | Path | Mapping[str, Any]) -> nn.Module:
    """Loads a checkpoint in the author's layout into `model` and returns it. Arguments: as in `published_tensors`.

    The weights expect the published input: build the model with `normalization="camvid-mean"` or "cityscapes-mean" if
    images go through `model.preprocess`. Raises also ValueError for a shape that does not fit; the model is unchanged.
    """
    loaded, own = published_tensors(model, source), model.state_dict()
    for name, tensor in loaded.items():
        if tensor.shape != own[name].shape:
            key, needed = published_name(name, model.config["revision"]), tuple(own[name].shape)
            classes = f": it was trained for {tensor.shape[0]} classes" if name.startswith(("head", "aux")) else ""
            raise ValueError(f"{key} has shape {tuple(tensor.shape)}, the model needs {needed}{classes}")
    model.load_state_dict(loaded)
    return model


def published_tensors(model: nn.Module, source: str | Path | Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a checkpoint in the author's layout, by the names of `model.state_dict()`, whatever their shape.

    source: a path, a checkpoint dict `{"epoch": int, "model": state_dict}`, or a bare state dict. Keys may have the
    prefix `module.`. Entries that the published code never uses are left out. Raises KeyError with the missing and
    unknown keys, and the errors of `read_tensors`."""
    state, own, revision = _state_dict(source), model.state_dict(), model.config["revision"]
    wanted = {published_name(name, revision): name for name in own}
    missing = sorted(key for key in wanted if key not in state and not key.endswith("num_batches_tracked"))
    unknown = sorted(key for key in state if key not in wanted and not _is_unused(key, wanted))
    if missing or unknown:
        raise KeyError(
            f"this is not a {revision} checkpoint of {model.config['name']}: "
            f"{len(missing)} missing ({shorten(', '.join(missing), 500)}), "
            f"{len(unknown)} unknown ({shorten(', '.join(unknown), 500)})"
        )
    return {name: state.get(key, own[name]) for key, name in wanted.items()}


def published_classes(source: str | Path | Mapping[str, Any]) -> int | None:
    """Number of classes of a checkpoint in the author's layout; None where it has no head of either revision."""
    state = _state_dict(source)
    return next((len(state[f"{head}weight"]) for head in _HEAD.values() if f"{head}weight" in state), None)


def load_plain(path: Path) -> Any:
    """The tensors and plain values in a file of `torch.save`, on the CPU; nothing else is unpickled. ValueError for a
    file that could take more memory than its size: compressed, which torch does not write, or with a byte array."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        members = zipfile.ZipFile(file).infolist() if zipfile.is_zipfile(file) else []
        if content.find(b"bytearray") >= 0 or sum(each.file_size for each in members) > len(content):
            raise ValueError(f"{path} is compressed, or holds a byte array: torch.save writes neither for a state dict")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own message recommends to run the code in the file
        advice = "holds pickled objects besides tensors, which are never executed here: save its state dict alone"
        raise ValueError(f"{path} is damaged, or {advice}") from error


def read_tensors(path: str | Path) -> Mapping[str, Any]:
    """The dict of tensors and plain values in a .pth file, on the CPU. Raises FileNotFoundError if there is none, and
    RuntimeError if it is damaged, holds pickled objects, which are never executed, or no dict."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        found = load_plain(path)
    except Exception as error:
        named = f"{path} is damaged or no checkpoint ({type(error).__name__}: {error})"
        raise RuntimeError(str(error) if str(error).startswith(str(path)) else named) from error
    if not isinstance(found, Mapping):
        raise RuntimeError(f"{path} holds a {type(found).__name__}, not a checkpoint dict or state dict")
    return found


def _state_dict(source: str | Path | Mapping[str, Any]) -> dict[str, Tensor]:
    if not isinstance(source, Mapping):
        source = read_tensors(source)
    if isinstance(source.get("model"), Mapping):
        source = source["model"]
    for key, value in source.items():
        if not (isinstance(key, str) and isinstance(value, Tensor)):
            raise KeyError(f"not a state dict: {key!r} is not the name of a tensor (and there is no 'model' entry)")
    return {key.removeprefix("module."): value for key, value in source.items()}


def _is_unused(key: str, wanted: Mapping[str, str]) -> bool:
    """Whether the published code stores `key` without using it, or the model has no auxiliary heads for it."""
    other_head = re.match(r"apf\d\.classifier\.", key) and not any(".classifier." in name for name in wanted)
    if _ALWAYS_UNUSED.fullmatch(key) or other_head:
        return True
    block = re.fullmatch(r"(.*)\.(bn|act)\.\w+", key)  # of some blocks only the convolution is used
    return block is not None and f"{block[1]}.conv.weight" in wanted and f"{block[1]}.bn.weight" not in wanted
