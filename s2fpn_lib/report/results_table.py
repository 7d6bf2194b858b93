"""The tidy table of all measurements, results.csv and results.parquet: written afresh from the run folders.

One row is one measurement: an evaluation.json, or the validation by which a finished training run chose its checkpoint.
per_class.csv and per_class.parquet hold the evaluations in long form, one row per class. Column names say `percent`
where values are percentages. `pd.read_csv(path, dtype=COLUMNS)` reads a CSV file back with its types.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from s2fpn_lib.data import get_protocol
from s2fpn_lib.evaluate import CONVENTION
from s2fpn_lib.report.collect import collect_evaluations, collect_runs, evaluation_rows, is_demo, with_cost
from s2fpn_lib.report.tables import SCORES
from s2fpn_lib.runs import atomic_file, results_root, write_atomic

TEXT, COUNT, NUMBER, FLAG = "string", "Int64", "Float64", "boolean"  # pandas' types that know missing values

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
    """Every measurement under `root` (None: the results folder), one per row, columns and types as in `COLUMNS`.

    Demo networks (`provenance.DEMO_RUN`) are left out. Missing values are unknown, never zero.
    """
    root = Path(root or results_root())
    rows = [_evaluation_row(row) for row in evaluation_rows(collect_evaluations(root)).to_dict("records")]
    rows += [_training_row(row) for row in collect_runs(root).to_dict("records")]
    frame = pd.DataFrame(rows, columns=None if rows else list(COLUMNS))
    frame = frame[~is_demo(frame)].sort_values(["measured_by", "folder"])
    frame["dataset"] = [get_protocol(name).dataset for name in frame["protocol"]]
    return _typed(with_cost(frame), COLUMNS)


def class_table(root: str | Path | None = None) -> pd.DataFrame:
    """One row per evaluation under `root` and class, columns and types as in `CLASS_COLUMNS`."""
    evaluations = collect_evaluations(root)
    rows = []
    for folder in sorted(evaluations):
        evaluation = evaluations[folder]
        for name, values in evaluation.per_class().iterrows():
            row = {"folder": folder, "class": name, "checkpoint": evaluation.provenance.get("checkpoint")}
            row |= {key: evaluation.settings[key] for key in ("protocol", "split")}
            rows.append(row | {f"{score}_percent": 100 * value for score, value in values.items()})
    frame = pd.DataFrame(rows)
    return _typed(frame[~is_demo(frame)], CLASS_COLUMNS)


def write_results(root: str | Path | None = None) -> pd.DataFrame:
    """Writes `root`/tables/results and per_class as .csv and .parquet, each atomically; returns the results table."""
    root = Path(root or results_root())
    written = {"results": results_table(root), "per_class": class_table(root)}
    for name, frame in written.items():
        write_atomic(root / "tables" / f"{name}.csv", frame.to_csv(index=False))
        with atomic_file(root / "tables" / f"{name}.parquet") as file:
            frame.to_parquet(file, index=False)
    return written["results"]


def _evaluation_row(row: dict[str, Any]) -> dict[str, Any]:
    scores = {f"{score}_percent": 100 * row[score] for score in SCORES}
    hashes = {"config_hash": row.get("recipe"), "config_hash_without_seed": row.get("recipe_without_seed")}
    return {**row, **scores, **hashes, "measured_by": "evaluation", "folder": row["evaluation"]}


def _training_row(row: dict[str, Any]) -> dict[str, Any]:
    return {
        **row,
        "measured_by": "training",
        "folder": row["run"],
        "split": row.get("val_split"),
        "checkpoint": f"{Path(row['run']).name}/{row.get('checkpoint')}",
        "trained_on": row.get("dataset"),
        "epoch": row.get("epochs"),
        "config_hash": row.get("recipe"),
        "config_hash_without_seed": row.get("recipe_without_seed"),
        "convention": CONVENTION,
        "miou_percent": None if pd.isna(row.get("val_miou")) else 100 * row["val_miou"],
    }


def _typed(frame: pd.DataFrame, columns: dict[str, str]) -> pd.DataFrame:
    """The rows with exactly these columns, in these types; an empty text is a missing one."""
    return frame.reindex(columns=list(columns)).replace("", pd.NA).astype(columns).reset_index(drop=True)
