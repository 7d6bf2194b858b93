"""What lies under a results folder: training runs, curves, evaluations, and speed rows, read afresh by every call."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml

from s2fpn_lib.data import Protocol, get_protocol, register
from s2fpn_lib.evaluate import Evaluation
from s2fpn_lib.model import ENCODERS, build_model
from s2fpn_lib.model.blocks import REVISIONS
from s2fpn_lib.model.complexity import Complexity, measure_complexity
from s2fpn_lib.report.tables import REPETITION, percent
from s2fpn_lib.runs import read_json, read_rows, written_order
from s2fpn_lib.workbench.provenance import describe_switches, recipe_hashes

PLACE = ("device", "height", "width", "batch", "stage")  # speeds can only be compared if they agree in these
METHOD = ("network", "revision", "backend", "precision")  # what was timed, and how it was executed
NOISY, FREE = 0.15, 0.9  # the largest spread over the repeats, and the least share of its cores that a process gets
RATIOS = ["ratio", "ratio_low", "ratio_high"]


def collect_runs(root: str | Path) -> pd.DataFrame:
    """One row per finished training run: its folder `run`, its result.json, hashes of its recipe, study and variant."""
    rows = []
    for run, path in sorted(_find(root, "result.json").items()):
        if path.with_name("config.json").exists():
            recipe, result = read_json(path.with_name("config.json")), read_json(path)
            variant = path.parents[1] / "variant.json"
            names = read_json(variant) if variant.exists() else {}
            if own := result.pop("protocol_definition", None):
                register(Protocol.from_dict(own))
            known = {"study": names.get("study"), "variant": names.get("variant"), **recipe_hashes(recipe)}
            known |= {"switches": describe_switches(recipe.get("switches", {}))}
            known |= {"eval_images": recipe.get("eval_images", 0)}  # of each validation; 0: all
            rows.append({"run": run, **result, "data": result.get("data", {}).get("val"), **known})
    return pd.DataFrame(rows)


def collect_curves(root: str | Path) -> dict[str, list[dict[str, Any]]]:
    """{run: rows of its metrics.jsonl}, the most recently written run last."""
    return {run: rows for run, path in _find(root, "metrics.jsonl").items() if (rows := read_rows(path))}


def collect_evaluations(root: str | Path) -> dict[str, Evaluation]:
    """{folder: evaluation} of every evaluation.json, the most recently written last."""
    return {folder: Evaluation.load(path) for folder, path in _find(root, "evaluation.json").items()}


def _find(root: str | Path, name: str) -> dict[str, Path]:
    """{folder under `root`: path} of the files with this name, the most recently written last."""
    paths = sorted(Path(root).rglob(name), key=lambda path: (written_order(path), path))
    return {path.parent.relative_to(root).as_posix(): path for path in paths}


def collect_speed(root: str | Path) -> pd.DataFrame:
    """Every row of the files speed*.jsonl, with its `file`."""
    rows = [(path, row) for path in sorted(Path(root).rglob("speed*.jsonl")) for row in read_rows(path)]
    return pd.DataFrame([{"file": path.relative_to(root).as_posix(), **row} for path, row in rows])


def latest_speed(speed: pd.DataFrame) -> pd.DataFrame:
    """The last of repeated measurements; a row with a score (it names a protocol) does not repeat one without."""
    ordered = speed.sort_values("time", kind="stable") if "time" in speed else speed
    return ordered[~ordered.reindex(columns=[*PLACE, *METHOD, "protocol", "checkpoint_sha"]).duplicated(keep="last")]


def with_remarks(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with `remark`: why a time means little, empty where nothing speaks against it.

    - "noisy": the repeats differ by more than `NOISY` of the median.
    - "busy machine": other processes had the cores for more than 1 - `FREE` of the time.
    - "faster than its network": an end-to-end time below that of the network which it contains.

    Such a row has no ratio, and neither have the rows that were compared with it. rows: of `measure_rows` or any other
    benchmark; columns that they lack raise no remark.
    """
    known = rows.reindex(columns=rows.columns.union(["stage", "p50_ms", "spread", "cpu_share", "backend", "way"]))
    known["all"] = 0  # the group of all rows, where they have none of the other columns
    same = ["all", *PLACE, "network", "revision", "checkpoint_sha", "run", "kind"]
    same = [c for c in same if c in known and c != "stage"]
    method = [*same, *(c for c in ("backend", "precision") if c in known)]
    network = known[known["stage"] == "network"].drop_duplicates(method, keep="last")
    inside = known[method].merge(network[[*method, "p50_ms"]], on=method, how="left")["p50_ms"].set_axis(rows.index)
    remarks = pd.Series("", index=rows.index)
    for found, text in (
        (known["spread"] > NOISY, "noisy: repeats differ by " + known["spread"].map(percent).astype(str) + " %"),
        (known["cpu_share"] < FREE, "busy machine: " + known["cpu_share"].map(percent).astype(str) + " % of its cores"),
        ((known["stage"] == "end to end") & (known["p50_ms"] < inside), "faster than its network"),
    ):
        remarks = remarks.where(~found, remarks.where(remarks == "", remarks + "; ") + text)
    reference = (known[["backend", "way"]] == "published").any(axis=1) & (remarks != "")
    alone = reference.groupby([known[c] for c in (*same, "stage")], dropna=False).transform("any")
    ratios = {c: rows[c].astype(float).mask(alone | (remarks != "")) for c in RATIOS if c in rows}
    return rows.assign(remark=remarks, **ratios)


def evaluation_rows(evaluations: Mapping[str, Evaluation]) -> pd.DataFrame:
    """One row per evaluation, its folder in `evaluation`.

    Outside of studies, the hash of the whole recipe takes the place of a missing `recipe_without_seed`.
    """
    frame = pd.DataFrame([{"evaluation": name, **evaluation.row()} for name, evaluation in evaluations.items()])
    if "recipe" in frame:
        unknown = frame["recipe"] if "variant" not in frame else frame["recipe"].where(frame["variant"].isna())
        frame["recipe_without_seed"] = frame.get("recipe_without_seed", unknown).fillna(unknown)
    return frame


def scored_rows(evaluations: Mapping[str, Evaluation]) -> pd.DataFrame:
    """`evaluation_rows` with `parameters` and `gmacs`, only the last of repeated ones."""
    frame = evaluation_rows(evaluations)
    if frame.empty:
        return frame
    keys = [c for c in (*REPETITION, "seed", "checkpoint_sha") if c in frame]
    return with_cost(frame.drop_duplicates(keys, keep="last"))


@functools.cache
def network_cost(model: str, revision: str, switches: str, num_classes: int, size: tuple[int, int]) -> Complexity:
    """Parameters and multiply-accumulates of a network as rows name it, counted without computing anything.

    switches: as `describe_switches` writes them: "none", or "ssam=False strip_axis=width".
    """
    words = [] if switches == "none" else switches.split()
    given = {name: yaml.safe_load(value) for name, value in (word.split("=") for word in words)}
    with torch.device("meta"):  # shapes without values
        network = build_model(model, revision=revision, num_classes=num_classes, **given)
    return measure_complexity(network, size)


def with_cost(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows with `parameters` and `gmacs` at each row's protocol; missing if the network is not known."""
    costs = pd.DataFrame(index=frame.index, columns=["parameters", "gmacs"])
    for row in frame.reindex(columns=["model", "revision", "switches", "protocol"]).fillna("none").itertuples():
        if row.model in ENCODERS and row.revision in REVISIONS:
            protocol = get_protocol(row.protocol)
            cost = network_cost(row.model, row.revision, row.switches, protocol.num_classes, protocol.size)
            costs.loc[row.Index] = cost.parameters, cost.gigamacs
    return frame.join(costs.astype({"parameters": "Int64", "gmacs": "float64"}))
