"""A network as a folder to share: model.safetensors, config.json, and a model card, here or on the Hugging Face hub.

A class that inherits from `huggingface_hub.ModelHubMixin` could not be imported without that package.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from s2fpn_lib.runs import write_atomic
from s2fpn_lib.validate import as_declared

# One key: safetensors writes several in an order that differs from run to run, and equal weights must give equal files.
METADATA_KEY = "s2fpn"
FILES = WEIGHTS, CONFIG, CARD = ["model.safetensors", "config.json", "README.md"]
TEMPLATE = Path(__file__).with_name("model_card.md")
UNKNOWN = "not recorded"
_TEXTS = ("protocol", "dataset", "train_split", "val_split", "pretraining", "checkpoint_rule", "recipe", "git_sha")
RECORDED = dict.fromkeys(_TEXTS, str | None) | dict.fromkeys(("seed", "epoch", "step"), int | None)
RECORDED |= dict.fromkeys(("config", "protocol_definition"), dict[str, Any])
RECORDED |= {"training": list[dict[str, str | list[str] | None]], "val_miou": float | None}
DESCRIBED = {"config", "protocol", "protocol_definition", "training", "pretraining", "val_miou", "val_split"}


def serialized(model: nn.Module, metadata: Mapping[str, Any], *, half: bool = False) -> bytes:
    """A safetensors file with the weights of `model` (with `half`, those of floating point in float16) and, in its
    header, the JSON of {**metadata, "config": ...} and of the `digest` of both as "sha256"."""
    tensors = {name: value.detach().contiguous().cpu() for name, value in model.state_dict().items()}
    if half:
        tensors = {name: value.half() if value.is_floating_point() else value for name, value in tensors.items()}
    document = json.loads(json.dumps({**metadata, "config": model.config}))  # as it will be read
    document["sha256"] = digest(tensors, document)
    return safetensors.torch.save(tensors, {METADATA_KEY: json.dumps(document, sort_keys=True)})


def digest(tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> str:
    """SHA-256 of tensors (names, types, shapes, and values) and of the JSON object that describes them."""
    found = hashlib.sha256(json.dumps(document, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def read_document(text: str) -> dict[str, Any]:
    """The JSON object that describes a checkpoint; ValueError for another text, or a field of another type."""
    try:
        document = as_declared(json.loads(text), dict[str, Any])
        for name in RECORDED.keys() & document.keys():
            document[name] = as_declared(document[name], RECORDED[name])
        for each in document.get("training", ()):
            if isinstance(each["dataset"], list) or isinstance(each["split"], list):
                raise TypeError("training names no dataset and split")
    except (RecursionError, TypeError, KeyError) as error:
        raise ValueError(f"a wrong field in its description: {error}") from error
    return document


def rebuilt(document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    """The network of a checkpoint's description with its tensors; KeyError, TypeError, ValueError, or RuntimeError if
    they do not fit. It takes the memory of the tensors, whatever the description says."""
    from s2fpn_lib.model.s2fpn import build_model

    config = document["config"]
    if "encoder_weights" in config or config.get("num_classes") != len(tensors.get("head.weight", ())):
        raise ValueError("its description does not name its number of classes, or names a file")
    model = build_model(**config)
    model.load_state_dict(tensors)
    return model


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a safetensors file and the JSON object in its header, {} where it has none. Raises SafetensorError
    or ValueError if the file is damaged. Files of earlier versions hold no digest."""
    with safetensors.safe_open(path, framework="pt") as file:
        document = read_document((file.metadata() or {}).get(METADATA_KEY, "{}"))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, the file is no dict
    expected = document.pop("sha256", None)
    if expected and expected != digest(tensors, document):
        raise ValueError("its content does not have the checksum in its header")
    return tensors, document


class HubMixin:
    """`save_pretrained` and `from_pretrained` of the network."""

    metadata: Mapping[str, Any] = {}  # what its checkpoint records, set by `load_model` and `from_pretrained`

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        license: str = "unknown",
        push_to_hub: bool = False,
        repo_id: str | None = None,
        private: bool | None = None,
    ) -> Path:
        """Writes model.safetensors, config.json, and a model card (README.md) to `folder`, and returns it.

        Args:
            folder: new, or one that an earlier call wrote, whose files are replaced.
            license: of the weights, for the card: an identifier of the Hugging Face hub, e.g. "mit" or "cc-by-nc-4.0".
            push_to_hub: also upload the files. This needs the extra [hub] and a token (`hf auth login`, or HF_TOKEN).
            repo_id: the repository, which is created if missing; by default `folder` where that reads "owner/name",
                else its last part, under the account of the token.
            private: whether a new repository is private; None: as the account's settings say.

        Raises ValueError for a network that its `config` does not describe, such as a simplified one, FileExistsError
        for a folder with another config.json or README.md, such as a run's, ImportError, before anything is written,
        for an upload without the extra [hub], and WriteError where a file cannot be written.
        """
        from s2fpn_lib.model.s2fpn import build_model

        hub = _huggingface_hub() if push_to_hub else None
        with torch.device("meta"):
            declared = build_model(**self.config).state_dict()
        if declared.keys() != self.state_dict().keys():
            raise ValueError("only a network of build_model can be saved: give the model that this one was made from")
        folder = Path(folder).expanduser()
        if not (folder / WEIGHTS).exists() and any((folder / name).exists() for name in (CONFIG, CARD)):
            raise FileExistsError(f"{folder} holds a {CONFIG} or {CARD} of something else: give another folder")
        named = len(folder.parts) == 2 and not folder.is_absolute()
        repo_id = repo_id or (folder.as_posix() if named else folder.resolve().name)
        document = {**self.metadata, "config": self.config}
        write_atomic(folder / WEIGHTS, serialized(self, document))
        write_atomic(folder / CONFIG, json.dumps(document, indent=2, sort_keys=True) + "\n")
        write_atomic(folder / CARD, self._card(repo_id, license))
        if hub:
            api = hub.HfApi()
            created = api.create_repo(repo_id, private=private, exist_ok=True)
            api.upload_folder(repo_id=created.repo_id, folder_path=folder, allow_patterns=FILES)
        return folder

    @classmethod
    def from_pretrained(cls, folder_or_repo: str | Path, *, revision: str | None = None) -> Self:
        """The network of `save_pretrained`, in evaluation mode on the CPU, with what its checkpoint recorded.

        folder_or_repo: a local folder, or a repository of the Hugging Face hub ("owner/name", the extra [hub]), of
        which `revision` is a branch, tag, or commit. Raises FileNotFoundError for no such folder or repository, no
        connection, or a missing file, ImportError for a repository without the extra [hub], and RuntimeError for
        weights that are damaged or do not fit config.json.
        """
        name, folder = str(folder_or_repo), Path(folder_or_repo).expanduser()
        if not folder.is_dir():
            hub = _huggingface_hub(f"{name} is no local folder, and for the Hugging Face hub ")
            try:
                folder = Path(hub.snapshot_download(name, revision=revision, allow_patterns=FILES))
            except Exception as error:  # those of the hub, of its HTTP library, and of the operating system
                raise FileNotFoundError(
                    f"{name} is no local folder, and the Hugging Face hub does not give it ({error}). Without a "
                    f"network, fetch it elsewhere (hf download {name} --local-dir FOLDER) and give that folder's path"
                ) from error
        for file in (WEIGHTS, CONFIG):
            if not (folder / file).is_file():
                raise FileNotFoundError(f"{folder} has no {file}: give a folder that save_pretrained wrote")
        try:
            document = read_document((folder / CONFIG).read_text(encoding="utf-8"))
            tensors, header = read_weights(folder / WEIGHTS)
            if header and header != document:
                raise ValueError(f"{CONFIG} differs from the header of {WEIGHTS}")
            model = rebuilt(document, tensors)
        except (safetensors.SafetensorError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise RuntimeError(f"{folder} holds no network of this library, or a damaged one: {error}") from error
        model.metadata = document
        return model.eval()

    def _card(self, name: str, license: str) -> str:
        """The model card: what is recorded, and nothing else."""
        known, network = self.metadata, dict(self.config)
        title = f"{network.pop('name')}, revision {network.pop('revision')}"
        switches = {key: value for key, value in network.items() if key not in ("num_classes", "normalization")}
        protocol = known.get("protocol_definition") or {}
        training = Counter((each["dataset"], each["split"]) for each in known.get("training", ()))
        split, score = _plain(known.get("val_split")), "The checkpoint records no score."
        if (miou := known.get("val_miou")) is not None:
            score = f"{100 * miou:.2f} % mean IoU on the split {split}, measured during training."
            if any(split.partition(":")[0] in trained for _, trained in training):
                score += " **The weights were trained on images of this split.**"
        classes = zip(protocol.get("classes", ()), protocol.get("palette", ()), strict=True)
        used = sum(each.numel() for name, each in self.named_parameters() if not name.startswith("auxiliary."))
        mean, std = ([round(value, 4) for value in buffer.flatten().tolist()] for buffer in (self.mean, self.std))
        properties = {
            "network": ", ".join([title, *(f"{key}={value}" for key, value in switches.items())]),
            "parameters": f"{used / 1e6:.2f} M, without the auxiliary heads",
            "input": f"RGB on the scale 0..255, minus {mean}, divided by {std} (`preprocess`)",
            "output": f"logits of {self.num_classes} classes, at the size of the input",
            "protocol": known.get("protocol", UNKNOWN),
            "size at which it is scored": "{}x{} pixels".format(*protocol["size"]) if protocol else UNKNOWN,
            "ignored label id": protocol.get("ignore_id", UNKNOWN),
        }
        others = {key: json.dumps(value) for key, value in sorted(known.items()) if key not in DESCRIBED}
        return TEMPLATE.read_text(encoding="utf-8").format(
            license=json.dumps(license),
            datasets=json.dumps(list(dict.fromkeys(dataset for dataset, _ in training))),
            name=_plain(name),
            properties=_table(("property", "value"), properties.items()),
            classes=_table(("id", "class", "color"), ((i, *each) for i, each in enumerate(classes))),
            score=score,
            training=_table(("dataset", "split", "trainings"), ((*key, count) for key, count in training.items())),
            pretraining=_plain(known.get("pretraining", UNKNOWN)),
            source=_plain(protocol.get("source", UNKNOWN)),
            others=_table(("field", "value"), others.items()),
        )


def _table(head: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> str:
    """A table in Markdown; the word for what is unknown if it has no rows."""
    lines = ["| " + " | ".join(_plain(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([f"| {' | '.join(head)} |", "|" + "---|" * len(head), *lines]) if lines else UNKNOWN


def _plain(text: Any) -> str:
    """A text of one line, without elements of HTML, links, and pictures."""
    return escape(" ".join(str(text).split()), quote=False).replace("](", "]&#40;")


def _huggingface_hub(reason: str = "") -> ModuleType:
    try:
        import huggingface_hub
    except ImportError as error:
        message = "huggingface_hub is missing: pip install 's2fpn-workbench[hub]' (the extra [hub])"
        raise ImportError(reason + message) from error
    return huggingface_hub
