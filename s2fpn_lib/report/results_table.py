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
    # measured_by: "evaluation", or "training" for the run's own validation. folder: under the results folder.
    **dict.fromkeys(("measured_by", "folder", "study", "variant", "dataset", "protocol", "split"), TEXT),
    **dict.fromkeys(("images", "images_in_split"), COUNT),  # images: scored ones
    **dict.fromkeys(("model", "revision", "switches"), TEXT),
    "parameters": COUNT,  # of the inference path
    "gmacs": NUMBER,  # 1e9 multiply-accumulates of one image of the protocol's size
    **dict.fromkeys(("trained_on", "train_split", "pretraining"), TEXT),
    **dict.fromkeys(("seed", "epoch"), COUNT),  # epoch: finished ones, in the checkpoint
    # config_hash_without_seed is the same for repetitions; training_recipe, the hash of the config without seed and
    # network, is the same for networks that were trained alike. git_sha: of the code that trained.
    **dict.fromkeys(("checkpoint", "checkpoint_sha", "checkpoint_rule", "config_hash"), TEXT),
    **dict.fromkeys(("config_hash_without_seed", "training_recipe", "git_sha"), TEXT),
    **dict.fromkeys(("device", "amp", "scales"), TEXT),  # device: that computed the score
    "flip": FLAG,
    "window": TEXT,
    "convention": TEXT,  # of miou_percent; published_miou_percent has the published code's
    **{f"{score}_percent": NUMBER for score in SCORES},
}
CLASS_SCORES = ("iou", "precision", "recall", "boundary_f", "label_share")
CLASS_COLUMNS = {
    **dict.fromkeys(("folder", "protocol", "split", "class"), TEXT),  # folder: as in the results table
    **{f"{score}_percent": NUMBER for score in CLASS_SCORES},
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
