"""The checkpoint that a score belongs to: which one a notebook opens, its identity by content, its description."""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from s2fpn_lib.checkpoint import find_weights, read_metadata
from s2fpn_lib.config import RENAMED_FIELDS
from s2fpn_lib.data import Protocol, get_protocol
from s2fpn_lib.data.custom import is_description
from s2fpn_lib.model import Switches
from s2fpn_lib.model.hub import WEIGHTS
from s2fpn_lib.runs import config_hash, read_json, results_root, written_order

# What checkpoints record about their training, in the order in which tables show it.
RECORDED = ("train_split", "pretraining", "seed", "epoch", "recipe", "git_sha")


def newest_run(root: str | Path | None = None) -> Path | None:
    """The run folder under `root` (None: `results_root()`) that finished last, outside of studies; None without one."""
    root = Path(root or results_root())
    runs = [path.parent for path in root.rglob("result.json") if "studies" not in path.relative_to(root).parts]
    finished = [run for run in runs if (run / "config.json").exists() and any(run.glob("*.safetensors"))]
    return max(finished, key=lambda run: written_order(run / "result.json"), default=None)


def checkpoint_protocol(path_or_name: str | Path) -> Protocol | None:
    """Classes and colors that a checkpoint predicts; None for a published .pth, which does not record them."""
    metadata = read_metadata(path_or_name)
    return get_protocol(metadata["protocol"]) if "protocol" in metadata else None


def training_dataset(path_or_name: str | Path) -> str:
    """The dataset of a checkpoint's training, as `open_dataset` takes it; "auto" if it is not recorded."""
    config = find_weights(path_or_name).with_name("config.json")
    described = read_json(config).get("dataset", "") if config.exists() else ""
    if is_description(described) and Path(described).exists():
        return described
    return read_metadata(path_or_name).get("dataset") or "auto"


def checkpoint_provenance(
    path_or_name: str | Path, config: Mapping[str, Any] | None = None, varied: Collection[str] = ()
) -> dict[str, Any]:
    """The origin of a checkpoint that `load_model` takes, as columns of a result row.

    Returns checkpoint (folder and file), checkpoint_sha (first 10 hex digits of the file's SHA-256), checkpoint_rule,
    model, revision, normalization, switches, trained_on (dataset), and those of `RECORDED` and `recipe_hashes` that are
    known. config: the network's, for a published .pth, which does not record it. varied: as in `recipe_hashes`.
    """
    path = find_weights(path_or_name)
    result, recipe, metadata = path.with_name("result.json"), path.with_name("config.json"), read_metadata(path)
    sha = hashlib.sha256(path.read_bytes()).hexdigest()[:10]
    row: dict[str, Any] = {"checkpoint": f"{path.parent.name}/{path.name}", "checkpoint_sha": sha}
    row["checkpoint_rule"] = (read_json(result) if result.exists() else metadata).get("checkpoint_rule", "unstated")
    if network := metadata.get("config") or config:
        row |= {"model": network["name"], **{key: network.get(key) for key in ("revision", "normalization")}}
        switches = Switches.__dataclass_fields__
        row["switches"] = describe_switches({key: value for key, value in network.items() if key in switches})
    if metadata:
        row |= {"trained_on": metadata.get("dataset"), **{key: metadata[key] for key in RECORDED if key in metadata}}
    known = recipe.exists() and path.name != WEIGHTS  # the config.json of a shared model describes the network
    return row | (recipe_hashes(read_json(recipe), varied) if known else {})


def recipe_hashes(recipe: Mapping[str, Any], varied: Collection[str] = ()) -> dict[str, str]:
    """Two hashes of a run's config.json: recipe_without_seed, equal for repetitions, and training_recipe, equal for all
    networks that were trained alike, without the network (model, revision, switches) and the fields in `varied`."""
    repeated = {name: value for name, value in recipe.items() if name != "seed"}
    varied = {"model", "revision", "switches", *(RENAMED_FIELDS.get(name, name) for name in varied)}
    # a recipe keeps the names under which its fields were first stored
    alike = {name: value for name, value in repeated.items() if RENAMED_FIELDS.get(name, name) not in varied}
    return {"recipe_without_seed": config_hash(repeated), "training_recipe": config_hash(alike)}


def describe_switches(switches: Mapping[str, Any]) -> str:
    """The difference to the published network, as tables show it: "none", or "crb=False ssam=False"."""
    default = asdict(Switches())
    changed = sorted(f"{name}={value}" for name, value in switches.items() if value != default.get(name))
    return " ".join(changed) or "none"
