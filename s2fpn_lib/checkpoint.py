"""Weights to share (safetensors, with the JSON that rebuilds the model) and training states to resume from.

Weights:  save_weights(model, path, metadata)  ->  load_model(path or released name)
States:   save_state(path, state)              ->  load_state(path), which falls back to the state before it
"""

import json
import warnings
import zipfile
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from s2fpn_lib.model import NORMALIZATIONS, PUBLISHED_MODELS, build_model, load_published
from s2fpn_lib.runs import atomic_file, read_json, write_atomic

RELEASED = Path(__file__).resolve().parent / "weights"
# One key: safetensors writes several in an order that differs from run to run, and equal weights shall be equal files.
METADATA_KEY = "s2fpn"
TORCH_SUFFIXES = (".pt", ".pth")


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, or cannot be read; the message names the file."""


def save_weights(model: nn.Module, path: str | Path, metadata: dict[str, Any], *, half: bool = False) -> None:
    """Writes the model's weights to a safetensors file, atomically.

    Args:
        model: a model made by `build_model`; its `config` is stored along.
        metadata: JSON-able provenance (dataset, protocol, rule, epoch, seed, ...). Free of times and host names, so
            that equal runs give equal bytes.
        half: store float16, as released weights are; `load_model` gives float32 parameters either way.
    """
    tensors = {name: value.detach().contiguous().cpu() for name, value in model.state_dict().items()}
    if half:
        tensors = {name: value.half() if value.is_floating_point() else value for name, value in tensors.items()}
    document = json.dumps({"config": model.config, **metadata}, sort_keys=True)
    data = safetensors.torch.save(tensors, {METADATA_KEY: document})
    try:
        write_atomic(path, data)
    except OSError as error:
        raise CheckpointError(_cannot_write(path, error)) from error


def read_metadata(path: str | Path) -> dict[str, Any]:
    """What `save_weights` stored beside the weights: {"config": ..., **metadata}, without reading the weights."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            stored = (file.metadata() or {}).get(METADATA_KEY)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist") from error
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file ({error}): copy or train it again") from error
    if stored is None:
        raise CheckpointError(
            f"{path} does not say which model it belongs to: it was not written by this workbench. Build the model "
            "yourself and load the tensors with safetensors.torch.load_file"
        )
    return json.loads(stored)


def load_model(path_or_name: str | Path, *, device: str | torch.device = "cpu", **config: Any) -> nn.Module:
    """The model that a checkpoint holds, with its weights, in eval mode.

    Args:
        path_or_name: a .safetensors file of this workbench; a run directory (its chosen checkpoint); the name of a
            released weight, e.g. "s2fpn_lite-camvid"; or a .pth/.pt file in the author's layout.
        config: arguments of `build_model` (name, revision, num_classes, normalization, ...); needed by, and only
            allowed for, the author's layout, which does not record them: `published_checkpoint` gives them.

    Raises:
        CheckpointError: no such file or name (near ones are suggested), a damaged file, or weights that do not fit.
    """
    path = find_weights(path_or_name)
    if path.suffix in TORCH_SUFFIXES:
        return _load_foreign(path, config).to(device).eval()
    if config:
        raise TypeError(f"{path} records its own model; drop the arguments {', '.join(config)}")
    model = build_model(**read_metadata(path)["config"])
    load_weights(model, path)
    return model.to(device).eval()


def published_checkpoint(model: str, revision: str, dataset: str, num_classes: int) -> dict[str, Any]:
    """What `load_model` must be told of a checkpoint that the published code wrote: the arguments of `build_model`.

    model: a name of `build_model`, or the published command line's (SSFPN). dataset: what it was trained on; the
    published input of camvid and cityscapes is the image minus that dataset's mean.
    """
    normalization = f"{dataset}-mean"
    return {
        "name": PUBLISHED_MODELS.get(model, model),
        "revision": revision,
        "num_classes": num_classes,
        "normalization": normalization if normalization in NORMALIZATIONS else None,
    }


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Loads a safetensors file into `model`, every tensor of it, strictly."""
    try:
        model.load_state_dict(safetensors.torch.load_file(path))
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): copy or train it again") from error
    except RuntimeError as error:
        raise CheckpointError(f"the weights in {path} do not fit the model: {error}") from error


def released_names() -> list[str]:
    """Names that `load_model` knows without a path."""
    return sorted(path.stem for path in RELEASED.glob("*.safetensors"))


def find_weights(path_or_name: str | Path) -> Path:
    """The file that `load_model` reads for this path, run directory or released name; CheckpointError where none."""
    path = Path(path_or_name).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        return _chosen_checkpoint(path)
    if isinstance(path_or_name, str) and path_or_name in released_names():
        return RELEASED / f"{path_or_name}.safetensors"
    near = get_close_matches(str(path_or_name), released_names(), n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    names = ", ".join(released_names()) or "none"
    raise CheckpointError(f"{path_or_name} is neither a file nor a released weight.{hint} Released: {names}")


def save_state(path: str | Path, state: dict[str, Any]) -> None:
    """Writes a training state (nested dicts and lists of tensors and plain values) and keeps the one before it.

    The new state is complete on the disk before it takes the name `path`; the state that had it becomes `previous.pt`.

    Raises:
        CheckpointError: it could not be written (disk full, ...); both earlier states are as they were.
    """
    path = Path(path)
    try:
        with atomic_file(_incoming(path)) as file:
            torch.save(state, file)
        if path.exists():
            path.replace(_previous(path))
        _incoming(path).replace(path)
    except (OSError, RuntimeError) as error:  # torch's zip writer reports a failed write as RuntimeError
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        raise CheckpointError(_cannot_write(path, cause)) from error
    finally:
        _incoming(path).unlink(missing_ok=True)


def load_state(path: str | Path) -> dict[str, Any] | None:
    """The newest readable training state, or None where there has never been one.

    A missing or damaged `path` gives a warning that names it and the state before it (`previous.pt`); training from
    there comes to the same weights, it only repeats some steps. Nothing but tensors and plain values is unpickled.

    Raises:
        CheckpointError: there are states, and none is readable.
    """
    path = Path(path)
    candidates = [candidate for candidate in (path, _previous(path)) if candidate.exists()]
    damage = []
    for candidate in candidates:
        try:
            state = _read_state(candidate)
        except CheckpointError as error:
            damage.append(str(error))
            continue
        if candidate != path:
            reason = damage[0] if damage else f"{path} is missing"
            warnings.warn(f"{reason}; continuing from the state before it, {candidate.name}", stacklevel=2)
        return state
    if damage:
        raise CheckpointError("; ".join(damage) + ": delete the run directory to start again")
    return None


def _read_state(path: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not check the CRCs that torch.save writes
            if (broken := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"checksum of {broken} is wrong")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"training state {path} is damaged ({type(error).__name__}: {error})") from error


def _incoming(path: Path) -> Path:
    return path.with_name(f".{path.name}.incoming")


def _previous(path: Path) -> Path:
    return path.with_name(f"previous{path.suffix}")


def _cannot_write(path: str | Path, error: BaseException) -> str:
    return f"could not write {path} ({error}). What was saved before is intact: make room on that disk and run again"


def _chosen_checkpoint(run_dir: Path) -> Path:
    """The checkpoint that a finished run's rule chose; of an unfinished run the best so far."""
    result = run_dir / "result.json"
    if result.exists() and (chosen := read_json(result).get("checkpoint")):
        return run_dir / chosen
    for name in ("best.safetensors", "last.safetensors"):
        if (run_dir / name).exists():
            return run_dir / name
    raise CheckpointError(f"{run_dir} holds no best.safetensors or last.safetensors: is it a run directory?")


def _load_foreign(path: Path, config: dict[str, Any]) -> nn.Module:
    if not {"name", "num_classes"} <= config.keys():
        raise CheckpointError(
            f"{path} is in the author's layout, which does not name its model: say which, e.g. "
            f'load_model({str(path)!r}, name="s2fpn18", revision="v1", num_classes=19, normalization="cityscapes-mean")'
            ", or in a notebook the parameters model and dataset"
        )
    model = build_model(**config)
    load_published(model, path)
    return model
