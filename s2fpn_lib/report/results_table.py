"""Run directories as one tidy table, results.csv and results.parquet: made afresh from them, never edited.

A row is one measurement: an evaluation.json, or the validation by which a finished training run chose its checkpoint.
per_class.csv and .parquet hold the evaluations class by class, in long form. Percentages say so in their column's name.
"""

from __future__ import annotations

import ast
import functools
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from s2fpn_lib.data import get_protocol
from s2fpn_lib.evaluate import CONVENTION
from s2fpn_lib.model import ENCODERS, build_model
from s2fpn_lib.model.complexity import Complexity, measure_complexity
from s2fpn_lib.report.collect import collect_evaluations, collect_runs, evaluation_rows
from s2fpn_lib.runs import atomic_file, results_root, write_atomic
from s2fpn_lib.workbench.provenance import DEMO_RUN

TEXT, COUNT, NUMBER, FLAG = "string", "Int64", "Float64", "boolean"  # pandas' types that know missing values
SCORES = ("miou", "published_miou", "pixel_accuracy", "class_accuracy", "fwiou", "boundary_f")

COLUMNS = {
    "measured_by": TEXT,  # evaluation, or training: the run's own validation
    "folder": TEXT,  # under the results folder
    "study": TEXT,
    "variant": TEXT,
    "dataset": TEXT,  # that was scored
    "protocol": TEXT,
    "split": TEXT,
    "images": COUNT,  # scored
    "images_in_split": COUNT,
    "model": TEXT,
    "revision": TEXT,
    "switches": TEXT,
    "parameters": COUNT,  # of the inference path
    "gmacs": NUMBER,  # 1e9 multiply-accumulates of one image of the protocol's size
    "trained_on": TEXT,
    "train_split": TEXT,
    "pretraining": TEXT,
    "seed": COUNT,
    "epoch": COUNT,  # finished ones, in the checkpoint
    "checkpoint": TEXT,
    "checkpoint_sha": TEXT,
    "checkpoint_rule": TEXT,
    "config_hash": TEXT,
    "config_hash_without_seed": TEXT,  # the same for repetitions
    "training_recipe": TEXT,  # hash of the config without seed and network: the same for networks trained alike
    "git_sha": TEXT,  # of the code that trained
    "device": TEXT,  # that the score was computed on
    "amp": TEXT,
    "scales": TEXT,
    "flip": FLAG,
    "window": TEXT,
    "convention": TEXT,  # of miou_percent; published_miou_percent has the published code's
    **{f"{score}_percent": NUMBER for score in SCORES},
}
CLASS_COLUMNS = {
    "folder": TEXT,  # as in the results table
    "protocol": TEXT,
    "split": TEXT,
    "class": TEXT,
    "iou_percent": NUMBER,
    "precision_percent": NUMBER,
    "recall_percent": NUMBER,
    "boundary_f_percent": NUMBER,
    "label_share_percent": NUMBER,
}


def results_table(root: str | Path | None = None) -> pd.DataFrame:
    """Every measurement under `root` (None: the results folder), one a row, columns and types as in `COLUMNS`.

    Stand-ins (`provenance.DEMO_RUN`) are left out. Missing values are unknown, never zero.
    """
    root = Path(root or results_root())
    rows = [_evaluation_row(row) for row in evaluation_rows(collect_evaluations(root)).to_dict("records")]
    rows += [_training_row(row) for row in collect_runs(root).to_dict("records")]
    rows = [row for row in rows if not str(row.get("checkpoint")).startswith(f"{DEMO_RUN}/")]
    return _typed(sorted(rows, key=lambda row: (row["measured_by"], row["folder"])), COLUMNS)


def class_table(root: str | Path | None = None) -> pd.DataFrame:
    """One row an evaluation under `root` and class, columns and types as in `CLASS_COLUMNS`."""
    rows = []
    for folder, evaluation in sorted(collect_evaluations(root).items()):
        if str(evaluation.provenance.get("checkpoint")).startswith(f"{DEMO_RUN}/"):
            continue
        for name, values in evaluation.per_class().iterrows():
            row = {"folder": folder, "class": name, **{k: evaluation.settings[k] for k in ("protocol", "split")}}
            rows.append(row | {f"{score}_percent": 100 * value for score, value in values.items()})
    return _typed(rows, CLASS_COLUMNS)


def write_results(root: str | Path | None = None) -> pd.DataFrame:
    """Writes `root`/tables/results and per_class as .csv and .parquet, each whole or not at all; the results table."""
    root = Path(root or results_root())
    made = {"results": results_table(root), "per_class": class_table(root)}
    for name, frame in made.items():
        write_atomic(root / "tables" / f"{name}.csv", frame.to_csv(index=False))
        with atomic_file(root / "tables" / f"{name}.parquet") as file:
            frame.to_parquet(file, index=False)
    return made["results"]


def read_results(path: str | Path) -> pd.DataFrame:
    """The table in a file that `write_results` wrote: the same from the .csv as from the .parquet."""
    path = Path(path)
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    types = CLASS_COLUMNS if path.stem == "per_class" else COLUMNS
    read = {name: TEXT if kind == NUMBER else kind for name, kind in types.items()}
    frame = pd.read_csv(path, dtype=read, keep_default_na=False, na_values=[""])
    return frame.astype(types)  # numbers from their digits: exact, whatever pandas' own reading of floats would do


@functools.cache
def network_cost(model: str, revision: str, switches: str, num_classes: int, size: tuple[int, int]) -> Complexity:
    """Parameters and multiply-accumulates of a network as rows name it, counted without computing anything.

    switches: as `checkpoint_provenance` writes them: "none", or "ssam=False strip_axis=width".
    """
    pairs = [word.split("=", 1) for word in switches.split() if switches != "none"]
    given = {name: _literal(value) for name, value in pairs}
    with torch.device("meta"):  # shapes without values
        network = build_model(model, revision=revision, num_classes=num_classes, **given)
    return measure_complexity(network, size)


def with_cost(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows with `parameters` and `gmacs`, at each row's protocol; missing where the network is not known."""
    costs = []
    for row in frame.to_dict("records"):
        if row.get("model") not in ENCODERS or pd.isna(row.get("revision")):
            costs.append((pd.NA, float("nan")))
            continue
        protocol = get_protocol(row["protocol"])
        switches = row.get("switches")
        described = switches if isinstance(switches, str) else "none"
        cost = network_cost(row["model"], row["revision"], described, protocol.num_classes, protocol.size)
        costs.append((cost.parameters, cost.gigamacs))
    return frame.assign(
        parameters=pd.array([parameters for parameters, _ in costs], dtype="Int64"), gmacs=[gmacs for _, gmacs in costs]
    )


def _evaluation_row(row: dict[str, Any]) -> dict[str, Any]:
    scores = {f"{score}_percent": 100 * row[score] for score in SCORES}
    hashes = {"config_hash": row.get("recipe"), "config_hash_without_seed": row.get("recipe_without_seed")}
    return {**row, **scores, **hashes, "measured_by": "evaluation", "folder": row["evaluation"]}


def _training_row(row: dict[str, Any]) -> dict[str, Any]:
    return {
        **row,
        "measured_by": "training",
        "folder": row["run"],
        "split": row.get("val_split") or None,
        "checkpoint": f"{Path(row['run']).name}/{row.get('checkpoint')}",
        "trained_on": row.get("dataset"),
        "epoch": row.get("epochs"),
        "config_hash": row.get("recipe"),
        "config_hash_without_seed": row.get("recipe_without_seed"),
        "convention": CONVENTION,
        "miou_percent": None if pd.isna(row.get("val_miou")) else 100 * row["val_miou"],
    }


def _typed(rows: list[dict[str, Any]], columns: dict[str, str]) -> pd.DataFrame:
    """The rows with exactly these columns, in these types; an empty text is a missing one."""
    frame = pd.DataFrame(rows).reindex(columns=list(columns))
    if "parameters" in columns and rows:
        frame = with_cost(frame)
        frame["dataset"] = [get_protocol(name).dataset for name in frame["protocol"]]
    typed = {}
    for name, kind in columns.items():
        values = frame[name].astype(object).where(frame[name].notna(), pd.NA)
        typed[name] = values.where(values != "", pd.NA).astype(kind) if kind == TEXT else values.astype(kind)
    return pd.DataFrame(typed)


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text  # a word, such as width
