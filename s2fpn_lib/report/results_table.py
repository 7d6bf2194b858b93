"""The tidy table of all measurements, results.csv and results.parquet: written afresh from the run folders.

One row is one measurement: an evaluation.json, or the validation by which a finished training run chose its checkpoint.
per_class.csv and .parquet have one row per evaluation and class. results_columns.csv explains the columns.
"""

from pathlib import Path

import pandas as pd

from s2fpn_lib.data import get_protocol
from s2fpn_lib.evaluate import CONVENTION
from s2fpn_lib.report.collect import Skipped, collect_evaluations, collect_runs, evaluation_rows, with_cost
from s2fpn_lib.report.tables import SCORES
from s2fpn_lib.runs import atomic_file, write_atomic

# With pandas' types that know missing values
_LISTED = pd.read_csv(Path(__file__).with_name("results_columns.csv"), index_col="column")
COLUMNS, CLASS_COLUMNS = (_LISTED.loc[_LISTED["table"] == each, "type"].to_dict() for each in ("results", "per_class"))


def results_table(root: str | Path, skipped: Skipped = None) -> pd.DataFrame:
    """Every measurement under `root`, one per row; columns and types as in `COLUMNS`."""
    evaluated = evaluation_rows(collect_evaluations(root, skipped)).rename(columns={"evaluation": "folder"})
    names = {"run": "folder", "val_split": "split", "dataset": "trained_on", "epochs": "epoch"}
    names |= {"val_miou": "miou", "val_images_seen": "images_seen"}
    trained = collect_runs(root, skipped).rename(columns=names)
    if len(trained):
        trained["checkpoint"] = trained["folder"].str.split("/").str[-1] + "/" + trained["checkpoint"]
    parts = [evaluated.assign(measured_by="evaluation"), trained.assign(measured_by="training", convention=CONVENTION)]
    frame = pd.concat(parts, ignore_index=True)
    hashes = {"recipe": "config_hash", "recipe_without_seed": "config_hash_without_seed"}
    frame = frame.rename(columns=hashes).reindex(columns=[*COLUMNS, *SCORES])
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
