"""What lies under the results folder: training runs, curves, evaluations, and speed rows, read afresh by every call.

In every function, root None means the results folder. Demo networks (`provenance.DEMO_RUN`), which are trained for
seconds to have something to show, are no training runs.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml

from s2fpn_lib.data import get_protocol
from s2fpn_lib.evaluate import Evaluation
from s2fpn_lib.model import ENCODERS, build_model
from s2fpn_lib.model.complexity import Complexity, measure_complexity
from s2fpn_lib.report.tables import REPETITION
from s2fpn_lib.runs import read_json, read_rows, results_root
from s2fpn_lib.workbench.provenance import DEMO_RUN, describe_switches, recipe_hashes

PLACE = ("device", "height", "width", "batch", "stage")  # speeds can only be compared if they agree in these
METHOD = ("network", "revision", "backend", "precision")  # what was timed, and how it was executed


def collect_runs(root: str | Path | None = None) -> pd.DataFrame:
    """One row per finished training run: its result.json, hashes of its recipe, and its folder `run`.

    A run of a study also has `study` and `variant`.
    """
    root = Path(root or results_root())
    rows = []
    for path in sorted(root.rglob("result.json")):
        if (path.parent / "config.json").exists() and path.parent.name != DEMO_RUN:
            recipe = read_json(path.parent / "config.json")
            variant = path.parent.parent / "variant.json"
            names = read_json(variant) if variant.exists() else {}
            rows.append(
                {
                    "run": path.parent.relative_to(root).as_posix(),
                    **read_json(path),
                    "switches": describe_switches(recipe.get("switches", {})),
                    **recipe_hashes(recipe),
                    **{key: names[key] for key in ("study", "variant") if key in names},
                }
            )
    return pd.DataFrame(rows)


def collect_curves(root: str | Path | None = None) -> dict[str, list[dict[str, Any]]]:
    """{run: rows of its metrics.jsonl} of finished and unfinished runs, the most recently written run last."""
    root = Path(root or results_root())
    found = {}
    for path in _oldest_first(root.rglob("metrics.jsonl")):
        if path.parent.name != DEMO_RUN and (rows := read_rows(path)):
            found[path.parent.relative_to(root).as_posix()] = rows
    return found


def collect_evaluations(root: str | Path | None = None) -> dict[str, Evaluation]:
    """{folder: evaluation} of every evaluation.json, the most recently written one last; demo networks included."""
    root = Path(root or results_root())
    paths = _oldest_first(root.rglob("evaluation.json"))
    return {path.parent.relative_to(root).as_posix(): Evaluation.load(path) for path in paths}


def collect_speed(root: str | Path | None = None) -> pd.DataFrame:
    """Every row of the files speed*.jsonl, with its `file`."""
    root = Path(root or results_root())
    rows = [(path, row) for path in sorted(root.rglob("speed*.jsonl")) for row in read_rows(path)]
    return pd.DataFrame([{"file": path.relative_to(root).as_posix(), **row} for path, row in rows])


def latest_speed(speed: pd.DataFrame) -> pd.DataFrame:
    """The last of repeated measurements; a row with a score (it names a protocol) does not repeat one without."""
    keys = [c for c in (*PLACE, *METHOD, "protocol") if c in speed]
    ordered = speed.sort_values("time", kind="stable") if "time" in speed else speed
    return ordered.drop_duplicates(keys, keep="last") if keys else ordered


def evaluation_rows(evaluations: Mapping[str, Evaluation]) -> pd.DataFrame:
    """One row per evaluation, its folder in `evaluation`.

    If a row lacks `recipe_without_seed`, the hash of the whole recipe takes its place, so that the row counts as a
    repetition of nothing. Rows of a study need none: their variant tells them apart.
    """
    frame = pd.DataFrame([{"evaluation": name, **evaluation.row()} for name, evaluation in evaluations.items()])
    if "recipe" in frame:
        unknown = frame["recipe"] if "variant" not in frame else frame["recipe"].where(frame["variant"].isna())
        frame["recipe_without_seed"] = frame.get("recipe_without_seed", unknown).fillna(unknown)
    return frame


def scored_rows(evaluations: Mapping[str, Evaluation]) -> pd.DataFrame:
    """`evaluation_rows` with `parameters` and `gmacs`, only the last of repeated ones, demo networks only if alone."""
    frame = evaluation_rows(evaluations)
    if frame.empty:
        return frame
    demo = is_demo(frame)
    frame = frame if demo.all() else frame[~demo]
    keys = [c for c in (*REPETITION, "seed", "checkpoint_sha") if c in frame]
    return with_cost(frame.drop_duplicates(keys, keep="last"))


def is_demo(rows: pd.DataFrame) -> pd.Series:
    """For each row, whether its checkpoint is that of a demo network."""
    checkpoints = rows["checkpoint"] if "checkpoint" in rows else pd.Series("", index=rows.index)
    return checkpoints.astype(str).str.startswith(f"{DEMO_RUN}/")


@functools.cache
def network_cost(model: str, revision: str, switches: str, num_classes: int, size: tuple[int, int]) -> Complexity:
    """Parameters and multiply-accumulates of a network as rows name it, counted without computing anything.

    switches: as `checkpoint_provenance` writes them: "none", or "ssam=False strip_axis=width".
    """
    pairs = [word.split("=", 1) for word in switches.split() if switches != "none"]
    given = {name: yaml.safe_load(value) for name, value in pairs}
    with torch.device("meta"):  # shapes without values
        network = build_model(model, revision=revision, num_classes=num_classes, **given)
    return measure_complexity(network, size)


def with_cost(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows with `parameters` and `gmacs` at each row's protocol; missing if the network is not known."""
    parameters, gmacs = [], []
    for row in frame.to_dict("records"):
        known = row.get("model") in ENCODERS and not pd.isna(row.get("revision"))
        if known:
            protocol = get_protocol(row["protocol"])
            switches = "none" if pd.isna(row.get("switches")) else row["switches"]
            cost = network_cost(row["model"], row["revision"], switches, protocol.num_classes, protocol.size)
        parameters.append(cost.parameters if known else pd.NA)
        gmacs.append(cost.gigamacs if known else float("nan"))
    return frame.assign(parameters=pd.array(parameters, dtype="Int64"), gmacs=gmacs)


def _oldest_first(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: (path.stat().st_mtime_ns, path))
