"""Which checkpoint a score belongs to: found, identified by content, described."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from s2fpn_lib.checkpoint import find_weights, read_metadata, released_names
from s2fpn_lib.model import Switches
from s2fpn_lib.runs import config_hash, read_json, results_root
from s2fpn_lib.train import ConfigChanged, TrainConfig, train

# MERGED stand_in: """A very small network for notebooks that have nothing else to show: trained in half a minute, and only once."""


DEMO_RUN = "stand-in"

# What checkpoints record about their training, in the order in which tables show it.
RECORDED = ("train_split", "pretraining", "seed", "epoch", "recipe", "git_sha")


def newest_run(root: str | Path | None = None) -> Path | None:
    """The run folder under `root` (None: the results folder) that finished last; None where none has finished.

    A folder without weights, kept for its records, has nothing to open and does not count. Folders named `DEMO_RUN`
    hold networks that were trained for seconds to have something to show; they are no run.
    """
    root = Path(root or results_root())
    finished = [path for path in root.rglob("result.json") if (path.parent / "config.json").exists()]
    finished = [path for path in finished if path.parent.name != DEMO_RUN and any(path.parent.glob("*.safetensors"))]
    return max(finished, key=lambda path: path.stat().st_mtime).parent if finished else None


def default_checkpoint(root: str | Path | None = None, *, prefer_released: bool = False) -> Path | str | None:
    """What a notebook with an empty `checkpoint` opens: the newest finished run under `root`, else the first released
    weight, the other way round with `prefer_released`; None where there is neither."""
    released = next(iter(released_names()), None)
    run = newest_run(root)
    return (released or run) if prefer_released else (run or released)


def checkpoint_provenance(
    path_or_name: str | Path, config: Mapping[str, Any] | None = None, varied: Collection[str] = ()
) -> dict[str, Any]:
    """Where a checkpoint that `load_model` takes comes from, as columns for a result row.

    checkpoint (folder and file), checkpoint_sha (first 10 hex digits of the file's SHA-256), checkpoint_rule
    ("unstated" outside a run folder), model, revision, normalization, switches, trained_on (dataset), and
    what the file records of `RECORDED`; in a run folder also the hashes of `recipe_hashes`.

    config: the network's (`model.config`), for a foreign .pth, which records nothing but its content. varied: as in
    `recipe_hashes`.
    """
    path = find_weights(path_or_name)
    row: dict[str, Any] = {
        "checkpoint": f"{path.parent.name}/{path.name}",
        "checkpoint_sha": hashlib.sha256(path.read_bytes()).hexdigest()[:10],
        "checkpoint_rule": "unstated",
    }
    result = path.parent / "result.json"
    if result.exists():
        row["checkpoint_rule"] = read_json(result).get("checkpoint_rule", "unstated")
    metadata = read_metadata(path) if path.suffix == ".safetensors" else {}
    config = dict(metadata.get("config") or config or {})
    if config:
        row["model"] = config.pop("name")
        row |= {key: config.pop(key, None) for key in ("revision", "normalization")}
        config.pop("num_classes", None)
        row["switches"] = describe_switches(config)
    if metadata:
        row["trained_on"] = metadata.get("dataset")
        row |= {key: metadata[key] for key in RECORDED if key in metadata}
    recipe = path.parent / "config.json"
    if recipe.exists():
        row |= recipe_hashes(read_json(recipe), varied)
    return row


def recipe_hashes(recipe: Mapping[str, Any], varied: Collection[str] = ()) -> dict[str, str]:
    """Hashes of parts of a run's config.json.

    recipe_without_seed: the same for repetitions. training_recipe: without seed and network as well (model, revision,
    switches), the same for networks that were trained alike; `varied` are fields that a study varies on purpose, which
    are left out of it, too.
    """
    network = ("model", "revision", "switches", *varied)
    repeated = {name: value for name, value in recipe.items() if name != "seed"}
    alike = {name: value for name, value in repeated.items() if name not in network}
    return {"recipe_without_seed": config_hash(repeated), "training_recipe": config_hash(alike)}


def describe_switches(switches: Mapping[str, Any]) -> str:
    """What differs from the published network, as tables show it: "none", or "crb=False ssam=False"."""
    default = asdict(Switches())
    changed = {name: value for name, value in switches.items() if value != default.get(name)}
    return " ".join(f"{name}={value}" for name, value in sorted(changed.items())) or "none"


def demo_checkpoint(results: str | Path | None = None, dataset: str = "roadscenes") -> Path:
    """Folder of a network trained for an epoch on quarter-size crops of `dataset`, from scratch; says so on stdout.

    Kept in a folder named `DEMO_RUN` under `results` (None: `results_root()`), where no report takes it for a run.
    """
    folder = Path(results or results_root()) / "train" / dataset / DEMO_RUN
    if not (folder / "result.json").exists():
        print(f"Nothing trained found: training a small stand-in on {dataset} (1 epoch, quarter-size crops).")
    changes = {"epochs": 1, "eval_every": 1, "crop": (120, 160), "encoder_weights": "", "eval_images": 4}
    config = TrainConfig.preset("quick", dataset=dataset, amp="off", **changes)
    try:
        return train(config, run_dir=folder).run_dir
    except ConfigChanged:  # left by a version with another recipe, and worth nothing
        shutil.rmtree(folder)
        return train(config, run_dir=folder).run_dir
