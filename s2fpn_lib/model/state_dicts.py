"""Reading files that other programs pickled, without running anything that is in them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def read_tensors(path: str | Path) -> Mapping[str, Any]:
    """The dict of tensors and plain values in a .pth file, on the CPU, read with `weights_only=True`.

    Raises FileNotFoundError for no file there, RuntimeError for one that is damaged, holds pickled objects, or no dict.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own message advises to run what is in the file
        raise RuntimeError(
            f"{path} holds pickled objects beside tensors, which are never executed here, or is damaged: "
            "save its state dict anew"
        ) from error
    except Exception as error:
        raise RuntimeError(f"{path} is damaged or no checkpoint ({type(error).__name__}: {error})") from error
    if not isinstance(found, Mapping):
        raise RuntimeError(f"{path} holds a {type(found).__name__}, not a checkpoint dict or state dict")
    return found
