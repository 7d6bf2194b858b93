"""Everything under the results folder as one page, results/report.html, with its tables as CSV, LaTeX and HTML."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from s2fpn_lib.report import tables
from s2fpn_lib.report.collect import collect_curves, collect_evaluations, collect_runs, collect_speed
from s2fpn_lib.report.export_table import export_table, only_new_files
from s2fpn_lib.report.page import Report
from s2fpn_lib.report.results_table import write_results
from s2fpn_lib.report.scores import score_section, scored_rows, versions
from s2fpn_lib.report.speed import accuracy_speed_section, speed_section
from s2fpn_lib.report.studies import failure_section, study_sections
from s2fpn_lib.runs import code_version, results_root
from s2fpn_lib.viz.charts import training_curves


def build_report(root: str | Path | None = None, *, title: str = "S²-FPN workbench: results", curves: int = 6) -> Path:
    """Writes `root`/report.html and `root`/tables/ (root None: the results folder); returns the page.

    tables/ gets the tidy tables (see `results_table`) and every table of the page. With nothing measured yet the page
    says so and still has the published numbers. curves: newest runs outside of studies to draw.
    """
    root = Path(root or results_root())
    version = code_version()
    code = (version["git_sha"] or "of unknown version")[:18] + " with uncommitted changes" * bool(version["dirty"])
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    page = Report(title, f"Made {now} from {root.name}/, code {code}.")
    with only_new_files(root / "tables"):
        _fill(page, root, curves)
    return page.write(root / "report.html")


def _fill(page: Report, root: Path, curves: int) -> None:
    tidy = write_results(root)
    runs, evaluations, speed = collect_runs(root), collect_evaluations(root), collect_speed(root)
    if runs.empty and not evaluations:
        page.note(
            "Nothing has been measured in this results folder yet: there is no finished run and no evaluation. Run"
            " 10_train and 11_evaluate, or `make run`, and make this page again. The published numbers are below."
        )
    else:
        page.text(
            f"All {len(tidy)} measurements, one a row, are in tables/results.csv and tables/results.parquet; every"
            " table below lies in the same folder as CSV, LaTeX and HTML. All of it is made afresh with this page."
        )
    failure_section(page, root)
    frame = scored_rows(evaluations)
    in_study = frame["study"].notna() if "study" in frame else pd.Series(False, index=frame.index)
    if not frame[~in_study].empty:
        score_section(page, frame[~in_study], evaluations, root)
    if in_study.any():
        study_sections(page, frame, evaluations, root)
    accuracy_speed_section(page, frame, speed, root)
    speed_section(page, speed, root)
    alone = [] if runs.empty else runs[~runs["run"].str.startswith("studies/")]
    if len(alone):
        _run_section(page, alone, root, curves)
    _published_section(page, root)


def _run_section(page: Report, runs: pd.DataFrame, root: Path, curves: int) -> None:
    page.section("Training runs")
    page.text("Outside of studies. val mIoU is what the run itself measured, by which its checkpoint rule chose.")
    shared = [c for c in ("dataset", "protocol", "device", "amp", "train_split", "val_split") if c in runs]
    columns = ["run", "model", "revision", "pretraining", "seed", "epochs", "steps", "seconds", "checkpoint_rule"]
    for protocol, rows in tables.split_by_protocol(runs).items():
        page.heading(protocol)
        varying = [c for c in shared if rows[c].nunique(dropna=False) > 1]
        table = rows[[c for c in [*columns, *varying, "stopped_by"] if c in rows]].copy()
        if "seconds" in table:
            table["seconds"] = table["seconds"].round().astype(int)
        table["val mIoU %"] = [tables.percent(value) for value in rows["val_miou"]]
        note = "; ".join(f"{c.replace('_', ' ')} {rows[c].iloc[0]}" for c in shared if c not in varying)
        page.table(table, f"{note}; code {versions(rows)}")
        export_table(table, root / "tables", f"runs-{protocol}", f"Training runs under {protocol}. {note}")
    alone = {run: rows for run, rows in collect_curves(root).items() if not run.startswith("studies/")}
    drawn = dict(list(alone.items())[-curves:])
    if drawn:
        page.figure(training_curves({Path(k).name: v for k, v in drawn.items()}), "Training curves; mIoU on val_split")


def _published_section(page: Report, root: Path) -> None:
    page.section("Published numbers")
    page.text(
        "As their authors state them; nothing here was measured by us. One table a protocol. The paper's ablation"
        " tables could not be recovered. An empty cell is unknown."
    )
    shown = {}
    for key, table in tables.published_tables().items():
        networks = table.groupby("source", sort=False)["network"].agg(", ".join)
        listed = "; ".join(f"{source} ({names})" for source, names in networks.items())
        note = f"source: {networks.index[0] if len(networks) == 1 else listed}"
        shown[key] = table.drop(columns="source"), note
        export_table(table, root / "tables", f"published-{key}", f"Published numbers, {key}; {note}")
    page.tables(shown)
