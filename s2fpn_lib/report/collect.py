"""What lies under a results folder: training runs, curves, evaluations, and speed rows, read afresh by every call.

The tidy table of all measurements has one row per evaluation.json, and per validation by which a finished training run
chose its checkpoint; the table per class has one row per evaluation and class. results_columns.csv has the columns of
both, and those of the files that are computed with.
"""

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml

from s2fpn_lib.data import Protocol, get_protocol, register
from s2fpn_lib.evaluate import CONVENTION, Evaluation
from s2fpn_lib.model import build_model
from s2fpn_lib.model.complexity import Complexity, measure_complexity
from s2fpn_lib.report.tables import REPETITION, SCORES, percent
from s2fpn_lib.runs import atomic_file, read_json, read_rows, write_atomic, written_order
from s2fpn_lib.validate import as_declared
from s2fpn_lib.workbench.provenance import describe_switches, recipe_hashes

PLACE = ("device", "height", "width", "batch", "stage")  # speeds can only be compared if they agree in these
METHOD = ("network", "revision", "backend", "precision")  # what was timed, and how it was executed
NOISY, FREE = 0.15, 0.9  # the largest spread over the repeats, and the least share of its cores that a process gets
Skipped = dict[str, str] | None  # {file: why it is left out}, which is added to; None: an error instead
RATIOS = ["ratio", "ratio_low", "ratio_high"]
# The tidy tables' columns, with pandas' types that know missing values
_LISTED = pd.read_csv(Path(__file__).with_name("results_columns.csv"), index_col="column")
COLUMNS, CLASS_COLUMNS = (_LISTED.loc[_LISTED["table"] == each, "type"].to_dict() for each in ("results", "per_class"))
_IN_FILES = {"string": str | None, "boolean": bool | None, "Int64": float | None, "Float64": float | None}
KINDS = {column: _IN_FILES[kind] for column, kind in _LISTED["type"].items()}  # of what files of results hold


def collect_runs(root: str | Path, skipped: Skipped = None) -> pd.DataFrame:
    """One row per finished training run: its folder `run`, its result.json, hashes of its recipe, study and variant."""

    def read(path: Path) -> dict[str, Any]:
        if not path.with_name("config.json").exists():
            return {}
        recipe, result = read_json(path.with_name("config.json")), read_json(path)
        variant = path.parents[1] / "variant.json"
        names = read_json(variant) if variant.exists() else {}
        if own := result.pop("protocol_definition", None):
            register(Protocol.from_dict(own))
        if "protocol" in result:
            get_protocol(result["protocol"])
        known = {"study": names.get("study"), "variant": names.get("variant"), **recipe_hashes(recipe)}
        known["switches"] = describe_switches(recipe.get("switches", {}))
        known["eval_images"] = recipe.get("eval_images", 0)  # of each validation; 0: all
        return _checked({**result, "data": result.get("data", {}).get("val"), **known})

    rows = _read(_find(root, "result.json"), read, skipped)
    return pd.DataFrame([{"run": run, **row} for run, row in sorted(rows.items()) if row])


def collect_curves(root: str | Path, skipped: Skipped = None) -> dict[str, list[dict[str, Any]]]:
    """{run: rows of its metrics.jsonl}, the most recently written run last."""

    def read(path: Path) -> list[dict[str, Any]]:
        return [as_declared(row, dict[str, int | float | None]) for row in read_rows(path) if row["epoch"] > 0]

    return {run: rows for run, rows in _read(_find(root, "metrics.jsonl"), read, skipped).items() if rows}


def collect_evaluations(root: str | Path, skipped: Skipped = None) -> dict[str, Evaluation]:
    """{folder: evaluation} of every evaluation.json, the most recently written last."""

    def read(path: Path) -> Evaluation:
        evaluation = Evaluation.load(path)
        _checked({**evaluation.settings, **evaluation.provenance})
        return evaluation

    return _read(_find(root, "evaluation.json"), read, skipped)


def collect_speed(root: str | Path, skipped: Skipped = None) -> pd.DataFrame:
    """Every row of the files speed*.jsonl, with its `file`."""
    paths = {path.relative_to(root).as_posix(): path for path in sorted(Path(root).rglob("speed*.jsonl"))}
    files = _read(paths, lambda path: list(map(_checked, read_rows(path))), skipped)
    return pd.DataFrame([{"file": name, **row} for name, rows in files.items() for row in rows])


def read_tables(paths: Sequence[Path], columns: Sequence[str], skipped: Skipped = None) -> list[pd.DataFrame]:
    """The CSV files among `paths`, which need to have the columns."""
    files = {str(path): path for path in paths if path.is_file()}
    return list(_read(files, lambda path: pd.read_csv(path).dropna(subset=list(columns)), skipped).values())


def _find(root: str | Path, name: str) -> dict[str, Path]:
    """{folder under `root`: path} of the files with this name, the most recently written last."""
    paths = sorted(Path(root).rglob(name), key=lambda path: (written_order(path), path))
    return {path.parent.relative_to(root).as_posix(): path for path in paths}


def _read(paths: Mapping[str, Path], read: Callable[[Path], Any], skipped: Skipped) -> dict[str, Any]:
    """{key: what `read` gives}; damaged files go to `skipped`, or raise ValueError."""
    found = {}
    for key, path in paths.items():
        try:
            found[key] = read(path)
        except (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError) as error:
            if skipped is None:
                raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
            skipped[str(path)] = f"{error}".removeprefix(f"{path}").strip(": ")
    return found


def _checked(row: dict[str, Any]) -> dict[str, Any]:
    """The row. Raises an error for a value of another type than that of its column."""
    for name in KINDS.keys() & row.keys():
        as_declared(row[name], KINDS[name])
    return row


def latest_speed(speed: pd.DataFrame) -> pd.DataFrame:
    """The last of repeated measurements; a row with a score (it names a protocol) does not repeat one without."""
    ordered = speed.sort_values("time", kind="stable") if "time" in speed else speed
    return ordered[~ordered.reindex(columns=[*PLACE, *METHOD, "protocol", "checkpoint_sha"]).duplicated(keep="last")]


def with_remarks(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with `remark`: why a time means little, empty where nothing speaks against it.

    - "noisy": the repeats differ by more than `NOISY` of the median.
    - "busy machine": other processes had the cores for more than 1 - `FREE` of the time.
    - "faster than its network": an end-to-end time below that of the network which it contains.

    Such a row has no ratio, and neither have the rows that were compared with it. Missing columns raise no remark.
    """
    known = rows.reindex(columns=rows.columns.union(["stage", "p50_ms", "spread", "cpu_share", "backend", "way"]))
    same = [c for c in (*PLACE, "network", "revision", "checkpoint_sha", "run", "kind") if c in known and c != "stage"]
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
    """One row per evaluation, its folder in `evaluation`, with the same keys of repetition for all of them."""
    frame = pd.DataFrame([{"evaluation": name, **evaluation.row()} for name, evaluation in evaluations.items()])
    if "recipe" in frame:  # outside of studies it stands for a missing hash without the seed
        unknown = frame["recipe"] if "variant" not in frame else frame["recipe"].where(frame["variant"].isna())
        frame["recipe_without_seed"] = frame.get("recipe_without_seed", unknown).fillna(unknown)
    return frame


def scored_rows(evaluations: Mapping[str, Evaluation]) -> pd.DataFrame:
    """`evaluation_rows` with `parameters` and `gmacs`, only the last of repeated ones."""
    frame = evaluation_rows(evaluations)
    keys = [c for c in (*REPETITION, "seed", "checkpoint_sha") if c in frame]
    return with_cost(frame.drop_duplicates(keys, keep="last"))


@functools.cache
def network_cost(model: str, revision: str, switches: str, num_classes: int, size: tuple[int, int]) -> Complexity:
    """Parameters and multiply-accumulates of a network. switches: as `describe_switches` writes them."""
    words = [] if switches == "none" else switches.split()
    given = {name: yaml.safe_load(value) for name, value in (word.split("=") for word in words)}
    with torch.device("meta"):  # shapes without values
        network = build_model(model, revision=revision, num_classes=num_classes, **given)
    return measure_complexity(network, size)


def with_cost(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows with `parameters` and `gmacs` at each row's protocol; missing if the network is not known."""
    costs = pd.DataFrame(index=frame.index, columns=["parameters", "gmacs"])
    for row in frame.reindex(columns=["model", "revision", "switches", "protocol"]).fillna("none").itertuples():
        protocol = get_protocol(row.protocol)
        with contextlib.suppress(TypeError, ValueError):  # another network, or switches of another version
            cost = network_cost(row.model, row.revision, row.switches, protocol.num_classes, protocol.size)
            costs.loc[row.Index] = cost.parameters, cost.gigamacs
    return frame.join(costs.astype({"parameters": "Int64", "gmacs": "float64"}))


def results_table(root: str | Path, skipped: Skipped = None) -> pd.DataFrame:
    """Every measurement under `root`, one per row; columns and types as in `COLUMNS`."""
    evaluated = evaluation_rows(collect_evaluations(root, skipped)).rename(columns={"evaluation": "folder"})
    names = {"run": "folder", "val_split": "split", "dataset": "trained_on", "epochs": "epoch"}
    names |= {"val_miou": "miou", "val_images_seen": "images_seen"}
    trained = collect_runs(root, skipped).rename(columns=names)
    if len(trained):
        trained["checkpoint"] = trained["folder"].str.split("/").str[-1] + "/" + trained["checkpoint"]
    parts = [evaluated.assign(measured_by="evaluation"), trained.assign(measured_by="training", convention=CONVENTION)]
    hashes = {"recipe": "config_hash", "recipe_without_seed": "config_hash_without_seed"}
    frame = pd.concat(parts, ignore_index=True).rename(columns=hashes).reindex(columns=[*COLUMNS, *SCORES])
    frame = frame.sort_values(["measured_by", "folder"])
    frame["dataset"] = [get_protocol(name).dataset for name in frame["protocol"]]
    frame[[f"{score}_percent" for score in SCORES]] = 100 * frame[list(SCORES)].astype("Float64")
    return _typed(with_cost(frame.drop(columns=["parameters", "gmacs"])), COLUMNS)


def class_table(root: str | Path, skipped: Skipped = None) -> pd.DataFrame:
    """One row per evaluation under `root` and class, columns and types as in `CLASS_COLUMNS`."""
    parts = [pd.DataFrame(columns=list(CLASS_COLUMNS))]
    for folder, evaluation in sorted(collect_evaluations(root, skipped).items()):
        scores = evaluation.per_class().mul(100).add_suffix("_percent").reset_index()
        known = {key: evaluation.settings[key] for key in ("protocol", "split")}
        parts.append(scores.assign(folder=folder, **known))
    return _typed(pd.concat(parts), CLASS_COLUMNS)


def write_results(root: str | Path, skipped: Skipped = None) -> pd.DataFrame:
    """Writes `root`/tables/results and per_class as .csv and .parquet, each atomically; returns the results table."""
    written = {"results": results_table(root, skipped), "per_class": class_table(root, skipped)}
    for name, frame in written.items():
        path = Path(root) / "tables" / name
        write_atomic(path.with_suffix(".csv"), frame.to_csv(index=False))
        with atomic_file(path.with_suffix(".parquet")) as file:
            frame.to_parquet(file, index=False)
    return written["results"]


def _typed(frame: pd.DataFrame, columns: dict[str, str]) -> pd.DataFrame:
    """The rows with exactly these columns, in these types; an empty text is a missing one."""
    return frame.reindex(columns=list(columns)).replace("", pd.NA).astype(columns).reset_index(drop=True)
