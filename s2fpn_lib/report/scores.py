"""The report's pages on scores: one protocol after the other, with classes, confusion and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from s2fpn_lib.evaluate import Evaluation
from s2fpn_lib.report import collect, tables
from s2fpn_lib.report.comparison import common_names, compare, load_samples
from s2fpn_lib.report.export_table import export_table
from s2fpn_lib.report.page import Report
from s2fpn_lib.report.results_table import with_cost
from s2fpn_lib.viz.charts import confusion_heatmap, per_class_bars
from s2fpn_lib.workbench.provenance import DEMO_RUN

SAME_EVALUATION = [*tables.REPETITION, "seed", "checkpoint_sha"]
PICTURES = {"predictions.png": "Predictions", "worst.png": "The worst images"}
DRAWN = 4  # networks in one chart or comparison


def scored_rows(evaluations: Mapping[str, Evaluation]) -> pd.DataFrame:
    """One row an evaluation, with parameters and GMACs; of repeated ones the last. Stand-ins only where all are."""
    if not evaluations:
        return pd.DataFrame()
    frame = collect.evaluation_rows(evaluations)
    if "checkpoint" in frame:
        demo_checkpoint = frame["checkpoint"].astype(str).str.startswith(f"{DEMO_RUN}/")
        frame = frame if demo_checkpoint.all() else frame[~demo_checkpoint]
    frame = frame.drop_duplicates([c for c in SAME_EVALUATION if c in frame], keep="last")
    return with_cost(frame)


def score_section(page: Report, frame: pd.DataFrame, evaluations: Mapping[str, Evaluation], root: Path) -> None:
    """frame: of `scored_rows`, without the rows of studies."""
    page.section("Scores")
    page.text(
        "mIoU is the mean over the classes that occur in labels or predictions; a class that is never found counts 0."
        " The published code leaves such classes out, which can only raise its number; that convention has a column of"
        " its own. Spread (±) is the sample standard deviation over seeds, of which there are as many as runs."
    )
    if "checkpoint" in frame and frame["checkpoint"].astype(str).str.startswith(f"{DEMO_RUN}/").all():
        page.note("These scores are of a stand-in that was trained for seconds so that there is something to show.")
    for protocol, rows in tables.split_by_protocol(frame).items():
        page.heading(protocol)
        partial = rows[rows["images"] < rows["images_in_split"]]
        for (images, whole, split), some in partial.groupby(["images", "images_in_split", "split"]):
            count = "one evaluation" if len(some) == 1 else f"{len(some)} evaluations"
            page.note(f"Only {images} of the {whole} images of {split} were scored in {count}.")
        by = repetition_keys(rows)
        scores, shared = tables.score_table(rows, by=by), tables.constants(rows)
        scores = with_cost_columns(scores, rows, by)
        page.table(scores, f"{shared}; {sources(rows)}")
        export_table(scores, root / "tables", f"scores-{protocol}", f"Scores under {protocol}. {shared}")
        _blind(page, rows, root)
        _beside_published(page, rows, protocol, by, root)
        class_scores(page, rows, f"classes-{protocol}", by, root)
        _pictures(page, rows, evaluations, root)


def repetition_keys(rows: pd.DataFrame) -> list[str]:
    """`REPETITION`, and the checkpoint where one seed was used by several that agree in all of it: no repetitions."""
    keys = [c for c in (*tables.REPETITION, "seed") if c in rows]
    collide = "checkpoint_sha" in rows and rows.duplicated(keys).any()
    return [*tables.REPETITION, *(["checkpoint_sha"] if collide else [])]


def with_cost_columns(table: pd.DataFrame, rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """The score table with the parameters and GMACs of each line's network, in the same order as `over_seeds`."""
    keys = [c for c in by if c in rows]
    first = rows.groupby(keys, dropna=False, sort=False)[["parameters", "gmacs"]].first()
    parameters = ["" if pd.isna(value) else f"{value / 1e6:.3f}" for value in first["parameters"]]
    gmacs = ["" if pd.isna(value) else f"{value:.3f}" for value in first["gmacs"]]
    return table.assign(**{"parameters M": parameters, "GMACs": gmacs})


def sources(rows: pd.DataFrame) -> str:
    """Seeds, checkpoints and code versions of the rows, as the end of the line under a table."""
    checkpoints = list(rows["checkpoint"].astype(str).unique()) if "checkpoint" in rows else ["unstated"]
    shown = ", ".join(checkpoints[:6]) + (f" and {len(checkpoints) - 6} more" if len(checkpoints) > 6 else "")
    seeds = ", ".join(str(s) for s in sorted(rows["seed"].dropna().unique())) if "seed" in rows else "unstated"
    return f"seeds {seeds}; checkpoints {shown}; code {versions(rows)}"


def versions(rows: pd.DataFrame) -> str:
    """The git SHAs in the rows."""
    if "git_sha" not in rows:
        return "of unknown version"
    return ", ".join("of unknown version" if pd.isna(sha) else str(sha)[:10] for sha in rows["git_sha"].unique())


def class_scores(page: Report, rows: pd.DataFrame, name: str, by: list[str], root: Path) -> None:
    """The table of IoU class by class, and its files."""
    table = tables.class_score_table(rows, by)
    page.heading("Class by class: IoU in %")
    page.table(table, "of the same runs as the table above; mean ± standard deviation over their seeds")
    export_table(table, root / "tables", name, f"IoU in percent. {tables.constants(rows)}")


def compare_samples(page: Report, named: Mapping[str, str], root: Path) -> None:
    """Predictions of several networks {name: evaluation's folder} for the same images, where they were kept."""
    kept = {name: samples for name, folder in named.items() if (samples := load_samples(root / folder))}
    if len(kept) > 1 and common_names(kept):
        page.heading("The same images, network by network")
        page.figure(compare(kept), f"Image, label and the predictions of {', '.join(kept)}")


def _blind(page: Report, rows: pd.DataFrame, root: Path) -> None:
    """What predicting the commonest class would have scored on the same images, as 11_evaluate recorded it."""
    files = [root / name / "baselines.csv" for name in rows["evaluation"]]
    found = [pd.read_csv(path) for path in files if path.exists()]
    if not found:
        return
    table = pd.concat(found).drop_duplicates(["baseline", "split", "images"])
    for score in ("miou", "pixel_accuracy"):
        table[f"{tables.SCORE_NAMES[score]} %"] = [tables.percent(value) for value in table.pop(score)]
    page.heading("What a blind predictor scores on the same labels")
    page.table(
        table.drop(columns="protocol"),
        "The commonest class is counted on the scored labels themselves, which flatters it.",
    )


def _beside_published(page: Report, rows: pd.DataFrame, protocol: str, by: list[str], root: Path) -> None:
    if not {"model", "revision"} <= set(rows):
        return
    beside = tables.beside_published(rows, by=by)
    if len(beside.columns) > 2:
        page.heading(f"{protocol} beside published numbers: mIoU in %")
        page.table(
            beside,
            "One column a protocol; columns with another split or input size do not measure the same thing."
            " Published sources are listed at the end of this page.",
        )
        export_table(beside, root / "tables", f"beside-{protocol}", "mIoU in percent beside published numbers")


def _pictures(page: Report, rows: pd.DataFrame, evaluations: Mapping[str, Evaluation], root: Path) -> None:
    shown = list(rows["evaluation"])[-DRAWN:]
    named = _short_names(rows[rows["evaluation"].isin(shown)])
    page.figure(
        per_class_bars({short: evaluations[name].per_class() for short, name in named.items()}),
        "IoU of each class, in percent",
    )
    newest = evaluations[shown[-1]]
    caption = next(name for name, folder in named.items() if folder == shown[-1])
    page.heading(f"What is taken for what: {caption}")
    page.figure(
        confusion_heatmap(newest.confusion, newest.classes),
        "Rows are labels and sum to 100 %; columns are predictions; a dot is less than half a percent",
    )
    compare_samples(page, named, root)
    for file, what in PICTURES.items():
        path = root / shown[-1] / file
        if path.exists():
            page.heading(f"{what}: {caption}")
            page.picture(path, f"{what} of {caption}: image, label, prediction, error")


def _short_names(rows: pd.DataFrame) -> dict[str, str]:
    """{network and seed, and the checkpoint's hash where that is not enough: evaluation's folder}."""
    names = []
    for row in rows.to_dict("records"):
        known = not pd.isna(row.get("model"))
        network = tables.network_name(row["model"], row["revision"]) if known else ""
        seed = f", seed {row['seed']:g}" if not pd.isna(row.get("seed")) else ""
        names.append(f"{network or row['evaluation']}{seed}")
    folders = list(rows["evaluation"])
    hashes = rows["checkpoint_sha"].astype(str) if "checkpoint_sha" in rows else rows["evaluation"]
    unclear = len(set(names)) < len(names)
    found = zip(names, hashes, folders, strict=True)
    return dict(sorted((f"{name} ({sha})" if unclear else name, folder) for name, sha, folder in found))
