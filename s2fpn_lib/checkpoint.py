"""Model weights (safetensors, with the JSON that rebuilds the model) and training states to resume from.

Weights:  save_weights(model, path, metadata)  ->  load_model(path or released name), or initialize(model, ...)
States:   save_state(path, state)              ->  load_state(path), which falls back to the previous state
"""

import hashlib
import io
import mmap
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import nn

from s2fpn_lib.data import PROTOCOLS, Protocol, SegmentationDataset, open_dataset, register
from s2fpn_lib.data.open import SPLITS, same_images
from s2fpn_lib.model import NORMALIZATIONS, PUBLISHED_MODELS, S2FPN, build_model, load_published
from s2fpn_lib.model.hub import METADATA_KEY, WEIGHTS, read_document, read_weights, rebuilt, serialized
from s2fpn_lib.model.published import load_plain, published_classes, published_tensors
from s2fpn_lib.runs import RunDirectory, atomic_file, read_json, read_rows, write_atomic
from s2fpn_lib.validate import did_you_mean

RELEASED = Path(__file__).resolve().parent / "weights"
DEFAULT = "s2fpn_lite-camvid-train"  # what the notebooks open: released weights that have not seen CamVid's val
TORCH_SUFFIXES = (".pt", ".pth")
PREVIOUS = "previous.pt"  # the training state before last.pt
DIGEST = 64  # hexadecimal digits of a SHA-256
_STATE_TAIL = re.compile(rb"step +(?P<step>\d+), sha256 (?P<digest>[0-9a-f]{64})\Z")
STATE_TAIL = 26 + DIGEST  # bytes of the above
# The normalization of the author's checkpoints by the number of their classes, which tells CamVid from Cityscapes
PUBLISHED_NORMALIZATIONS = {11: "camvid-mean", 19: "cityscapes-mean"}


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read; the message names the file."""


def save_weights(model: nn.Module, path: str | Path, metadata: dict[str, Any], *, half: bool = False) -> None:
    """Writes the weights and the `config` of a model of `build_model` to a safetensors file, atomically.

    metadata: provenance that JSON can hold (dataset, protocol, rule, epoch, seed, ...), without times and host names,
    so that equal runs give equal bytes. half: store float16, as in released weights; `load_model` gives float32
    parameters in both cases. Raises WriteError if the file cannot be written; an earlier file is intact then.
    """
    write_atomic(path, serialized(model, metadata, half=half))


def read_metadata(path_or_name: str | Path) -> dict[str, Any]:
    """{"config": ..., **metadata} of a checkpoint, without reading the weights; {} for the author's layout.

    The protocol of the user's own dataset becomes known to `get_protocol`. Raises CheckpointError as `load_model`.
    """
    path = find_weights(path_or_name)
    if path.suffix in TORCH_SUFFIXES:
        return {}
    with _named(path), safetensors.safe_open(path, framework="pt") as file:
        metadata = read_document((file.metadata() or {}).get(METADATA_KEY, "{}"))
        if "config" not in metadata:
            raise CheckpointError(
                f"{path} does not say which model it belongs to: it was not written by this workbench. Build the model "
                "yourself and load the tensors with safetensors.torch.load_file"
            )
        metadata.pop("sha256", None)
        if definition := metadata.get("protocol_definition"):
            register(Protocol.from_dict(definition))
    return metadata


def load_model(path_or_name: str | Path, *, device: str | torch.device = "cpu", **config: Any) -> nn.Module:
    """The model of a checkpoint, with its weights, in evaluation mode.

    Its attribute `metadata` is that of `read_metadata`.

    Args:
        path_or_name: a .safetensors file of this workbench; a run directory (its chosen checkpoint) or a folder of
            `save_pretrained`; a released name, e.g. "s2fpn_lite-camvid"; or a .pth or .pt file in the author's layout.
        config: arguments of `build_model` for the author's layout, which does not record them (`published_arguments`).

    Raises CheckpointError if there is no such file or name, or it is damaged or does not fit, and TypeError for
    `config` with a checkpoint that records its own model.
    """
    path = find_weights(path_or_name)
    if path.suffix in TORCH_SUFFIXES:
        if not {"name", "num_classes"} <= config.keys():
            example = 'name="s2fpn18", revision="v1", num_classes=19, normalization="cityscapes-mean"'
            raise CheckpointError(
                f"{path} is in the author's layout, which does not name its model: give its name, for example "
                f"load_model({str(path)!r}, {example}), or in a notebook the parameters model and dataset"
            )
        model = build_model(**config)
        with _named(path):
            return load_published(model, path).to(device).eval()
    if config:
        raise TypeError(f"{path} records its own model; drop the arguments {', '.join(config)}")
    metadata = read_metadata(path)
    with _named(path):
        tensors, _ = read_weights(path)
    try:
        model = rebuilt(metadata, tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"the weights in {path} do not fit the model: {error}") from error
    protocol = PROTOCOLS.get(metadata.get("protocol"))
    if protocol and "protocol_definition" not in metadata:  # files of earlier versions lack definition and history
        metadata["protocol_definition"] = protocol.to_dict()
    if history := training_history(metadata):
        metadata["training"] = history
    model.metadata = metadata
    return model.to(device).eval()


def published_arguments(path_or_name: str | Path, model: str, revision: str, protocol: Protocol) -> dict[str, Any]:
    """The `config` of `load_model` for a checkpoint of the published code; empty for one that records its model.

    model: a name of `build_model`, or of the published command line ("SSFPN"). protocol: of the training dataset.
    """
    if Path(path_or_name).suffix not in TORCH_SUFFIXES:
        return {}
    normalization = "camvid-mean" if same_images(protocol.dataset, "camvid") else f"{protocol.dataset}-mean"
    return {
        "name": PUBLISHED_MODELS.get(model, model),
        "revision": revision,
        "num_classes": protocol.num_classes,
        "normalization": normalization if normalization in NORMALIZATIONS else None,
    }


def recorded_network(path_or_name: str | Path) -> dict[str, Any]:
    """The arguments of `build_model` that a checkpoint records; for the author's layout {"normalization": ...} alone,
    the one that belongs to the number of its classes, if known. Raises CheckpointError as `read_metadata`."""
    if metadata := read_metadata(path_or_name):
        return metadata["config"]
    path = find_weights(path_or_name)
    with _named(path):
        classes = published_classes(path)
    return {"normalization": PUBLISHED_NORMALIZATIONS[classes]} if classes in PUBLISHED_NORMALIZATIONS else {}


def initialize(model: S2FPN, path_or_name: str | Path) -> list[str]:
    """Loads the weights that a training starts from, also those of a network with another number of classes.

    Returns the names of the parameters and buffers that keep their initialization: output layers for another number of
    classes, and parts that the other network lacks. Raises CheckpointError if there is no such file, it is damaged, or
    another tensor does not fit; the model is unchanged then.
    """
    path, own = find_weights(path_or_name), model.state_dict()
    with _named(path):
        published = path.suffix in TORCH_SUFFIXES
        loaded = published_tensors(model, path) if published else read_weights(path)[0]
    kept, wrong = own.keys() - loaded.keys(), []
    for name in sorted(own.keys() & loaded.keys()):
        found, needed = loaded[name].shape, own[name].shape
        if found != needed and name.startswith(("head.", "auxiliary.")) and found[1:] == needed[1:]:
            kept.add(name)
        elif found != needed:
            wrong.append(f"{name} is {tuple(found)} instead of {tuple(needed)}")
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        network = f"{model.config['name']} {model.config['revision']}"
        raise CheckpointError(f"{path} does not fit {network} ({', '.join(wrong[:3])}{more}): give its own model")
    model.load_state_dict({name: value if name in kept else loaded[name] for name, value in own.items()})
    return sorted(kept)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors in reading a file as CheckpointErrors that name it."""
    try:
        yield
    except (safetensors.SafetensorError, TypeError, ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged or does not fit ({error}): copy or train it again") from error
    except KeyError as error:
        raise CheckpointError(f"{path}: {error.args[0]}. Give its model and revision") from error
    except RuntimeError as error:
        raise CheckpointError(str(error) if str(path) in str(error) else f"{path}: {error}") from error


def training_history(metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What weights were trained on, oldest first: one {"dataset": ..., "split": ...} for each training, with the names
    of the `images` where the dataset is the user's own. metadata: of `read_metadata`."""
    if "training" in metadata:
        return list(metadata["training"])
    # older files describe earlier trainings in words
    found = re.findall(r"(?:, then|trained on) (\S+) ([^\s,;]+)", metadata.get("pretraining", ""))
    found.append((metadata.get("dataset"), metadata.get("train_split")))
    return [{"dataset": name, "split": split} for name, split in found if split not in (None, "None")]


def names_seen(metadata: Mapping[str, Any], dataset: SegmentationDataset) -> set[str]:
    """Names of images that the weights were trained on, of the splits of `dataset` and of other editions of its images.

    Where such a split cannot be opened, all images count if its name and the dataset's share a part (train, val, test).
    """
    own = getattr(dataset, "name", None)
    trainings = [each for each in training_history(metadata) if same_images(each["dataset"], own)]
    source = dataset
    while getattr(source, "items", None):
        source = source.items[0][0]
    seen = {name for each in trainings for name in each.get("images", ())}
    for split in {each["split"] for each in trainings if "images" not in each}:
        try:
            where = getattr(source, "path", own), getattr(source, "root", None)
            seen.update(open_dataset(*where, split, cache=False).names)
        except (OSError, ValueError):
            parts = [set(SPLITS.get(each.partition(":")[0], ())) for each in (split, dataset.split)]
            seen.update(dataset.names if parts[0] & parts[1] else ())
    return seen


def released_names() -> list[str]:
    """Names that `load_model` knows without a path."""
    return sorted(path.stem for path in RELEASED.glob("*.safetensors"))


def find_weights(path_or_name: str | Path) -> Path:
    """The file that `load_model` reads for a path, run directory, or released name; CheckpointError if there is none.

    In the directory of a finished run it is the checkpoint that the run's rule chose, else the best so far.
    """
    path = Path(path_or_name).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        result = path / "result.json"
        with _named(result):
            chosen = read_json(result).get("checkpoint") if result.exists() else None
            if chosen and (not isinstance(chosen, str) or Path(chosen).name != chosen):
                raise ValueError(f"checkpoint is {chosen!r}, which is not the name of a file in the folder")
        names = (chosen, "last.safetensors") if chosen else ("best.safetensors", "last.safetensors", WEIGHTS)
        found = next((path / name for name in names if (path / name).is_file()), None)
        if found is None:
            raise CheckpointError(f"{path} holds no {' or '.join(names)}: is it a run directory?")
        if chosen and found.name != chosen:
            reason = f"{path / chosen} is missing, as where a run of an earlier version stopped before a validation"
            warnings.warn(f"{reason}; the last weights of the run are used instead", stacklevel=3)
        return found
    names = released_names()
    if str(path_or_name) in names:
        return RELEASED / f"{path_or_name}.safetensors"
    hint = did_you_mean(str(path_or_name), names)
    raise CheckpointError(f"{path_or_name} is neither a file nor a released weight.{hint} Released: {', '.join(names)}")


def save_state(path: str | Path, state: dict[str, Any]) -> None:
    """Writes a training state (nested dicts and lists of tensors and plain values); the last one becomes `previous.pt`.

    The file is what `torch.save` writes. Its zip comment holds the step and the SHA-256 of all bytes before the digest.
    Raises WriteError if it cannot be written (disk full, ...); both earlier states are intact then.
    """
    with atomic_file(path, previous=PREVIOUS) as file:
        torch.save(state, file)
        comment = b"step %12d, sha256 " % state["step"]
        file.seek(-2, io.SEEK_END)  # the length of the zip archive's comment
        file.write((len(comment) + DIGEST).to_bytes(2, "little") + comment)
        file.seek(0)
        file.write(hashlib.file_digest(file, "sha256").hexdigest().encode())


def load_state(path: str | Path, run: str = "", *, recover: bool = False) -> dict[str, Any] | None:
    """The newest intact training state, or None if there has never been one.

    A state is intact if its digest is right, and if it belongs to `run`. Without one at `path`, a warning says why and
    how many steps are repeated, and `previous.pt` is returned. Only tensors and plain values are unpickled.

    run: `RunDirectory.identity` of the run; empty: any. recover: rename `previous.pt` to `path` where it is returned,
    because the next `save_state` would replace it by what is at `path`, which becomes `damaged.pt`.

    Raises CheckpointError if there are states and none is intact.
    """
    path, damage = Path(path), []
    for candidate in filter(Path.is_file, (path, path.with_name(PREVIOUS))):
        try:
            state = _read_state(candidate)
            if run and state.get("run", run) != run:
                raise ValueError("it belongs to a run with another configuration or other data")
        except Exception as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            damage.append(f"training state {candidate} is damaged or foreign ({reason})")
            continue
        if candidate != path:
            reason = damage[0] if damage else f"{path} is missing"
            place = f"continuing from the state before it, {candidate.name} at step {state['step']}"
            repeated = _repeated(path, state["step"])
            warnings.warn(f"{reason}; {place}: {repeated} are repeated", stacklevel=2)
            if recover:
                if path.exists():
                    path.replace(path.with_name("damaged.pt"))
                candidate.replace(path)
        return state
    if damage:
        raise CheckpointError("; ".join(damage) + ": restore one of them, or delete the run directory to start again")
    return None


def _read_state(path: Path) -> dict[str, Any]:
    """The training state in a file whose digest is right. Raises an error of any type for another file."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if found := _STATE_TAIL.search(data, max(0, len(data) - STATE_TAIL)):
            with memoryview(data) as view, view[:-DIGEST] as signed:
                right = hashlib.sha256(signed).hexdigest().encode() == found["digest"]
        else:  # of an earlier version, without a comment
            right = data[-22:-18] == b"PK\5\6" and zipfile.ZipFile(file).testzip() is None
    if not right:
        raise ValueError("its checksum is wrong")
    state = load_plain(path)
    if not isinstance(state, dict) or "model" not in state or not isinstance(state.get("step"), int):
        raise ValueError("it is not a training state")
    return state


def _repeated(path: Path, step: int) -> str:
    """The number of steps from `step` to the state at `path`, which cannot be used, as far as it is known."""
    with suppress(OSError):
        if found := _STATE_TAIL.search(path.read_bytes()[-STATE_TAIL:]):
            return f"{int(found['step']) - step} steps"
    with suppress(OSError, ValueError, KeyError):
        rows = read_rows(RunDirectory(path.parent).metrics)  # states inside an epoch have no row
        if (steps := max(row["step"] for row in rows) - step) > 0:
            return f"at least {steps} steps"
    return "the steps after it"
