"""Everything under the results folder as one page, results/report.html, with its tables as CSV and LaTeX."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from s2fpn_lib import tables
from s2fpn_lib.evaluate import Evaluation
from s2fpn_lib.plots import accuracy_speed, confusion_heatmap, per_class_bars, training_curves
from s2fpn_lib.provenance import STAND_IN
from s2fpn_lib.report import Report
from s2fpn_lib.runs import code_version, results_root, write_atomic

SAME_EVALUATION = [*tables.REPETITION, "seed", "checkpoint_sha"]
PICTURES = {"predictions.png": "Predictions", "worst.png": "The worst images"}


def build_report(root: str | Path | None = None, *, title: str = "S²-FPN workbench: results", curves: int = 6) -> Path:
    """Writes `root`/report.html and `root`/tables/*.csv and *.tex (root None: the results folder); returns the page.

    With nothing measured yet the page says so and still has the published numbers. curves: newest runs to draw.
    """
    root = Path(root or results_root())
    version = code_version()
    changed = " with uncommitted changes" if version["dirty"] else ""
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    page = Report(title, f"Made {now} from {root.name}/, code {version['git_sha'] or 'of unknown version'}{changed}.")
    runs, evaluations = tables.collect_runs(root), tables.collect_evaluations(root)
    if runs.empty and not evaluations:
        page.note(
            "Nothing has been measured in this results folder yet: there is no finished run and no evaluation. Run"
            " 10_train and 11_evaluate, or `make run`, and make this page again. The published numbers are below."
        )
    if evaluations:
        _evaluation_section(page, evaluations, root)
    if not runs.empty:
        _run_section(page, runs, root, curves)
    speed = tables.collect_speed(root)
    if not speed.empty:
        page.section("Speed")
        page.table(speed, "as measured; every row of the files named in the first column")
        _export(speed, root, "speed", "Speed as measured")
    _published_section(page)
    return page.write(root / "report.html")


def _evaluation_section(page: Report, evaluations: dict[str, Evaluation], root: Path) -> None:
    frame = tables.evaluation_rows(evaluations)
    page.section("Scores")
    page.text(
        "mIoU is the mean over the classes that occur in labels or predictions; a class that is never found counts 0."
        " The published code leaves such classes out, which can only raise its number; that convention has a column of"
        " its own. Spread is the sample standard deviation over seeds."
    )
    stand_in = frame["checkpoint"].astype(str).str.startswith(f"{STAND_IN}/") if "checkpoint" in frame else None
    if stand_in is not None and stand_in.all():
        page.note("These scores are of a stand-in that was trained for seconds so that there is something to show.")
    elif stand_in is not None:
        frame = frame[~stand_in]
    frame = frame.drop_duplicates([c for c in SAME_EVALUATION if c in frame], keep="last")
    for protocol, rows in tables.split_by_protocol(frame).items():
        page.heading(protocol)
        for part in rows.loc[
            rows["images"] < rows["images_in_split"], ["split", "images", "images_in_split"]
        ].itertuples():
            page.note(
                f"Only {part.images} of the {part.images_in_split} images of {part.split} were scored in one row."
            )
        by = [*tables.REPETITION, *(["checkpoint_sha"] if _seeds_collide(rows) else [])]
        scores = tables.score_table(rows, by=by)
        page.table(scores, f"{tables.constants(rows)}; {_seeds(rows)}")
        _export(scores, root, f"scores-{protocol}", f"Scores under {protocol}. {tables.constants(rows)}")
        _blind(page, rows, root)
        if {"model", "revision"} <= set(rows):
            beside = tables.beside_published(rows)
            if len(beside.columns) > 2:
                page.heading(f"{protocol} beside published numbers: mIoU in %")
                page.table(
                    beside,
                    "One column a protocol; columns with another split or input size do not measure the same thing."
                    " Published sources are listed at the end of this page.",
                )
                _export(beside, root, f"beside-{protocol}", "mIoU in percent beside published numbers")
        _per_class(page, rows, evaluations, root)


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


def _per_class(page: Report, rows: pd.DataFrame, evaluations: dict[str, Evaluation], root: Path) -> None:
    shown = list(rows["evaluation"])[-4:]
    named = {_short(evaluations[name], name): evaluations[name] for name in shown}
    page.heading("Class by class")
    page.figure(per_class_bars({name: e.per_class() for name, e in named.items()}), "IoU of each class, in percent")
    newest = evaluations[shown[-1]]
    caption = _short(newest, shown[-1])
    page.heading(f"What is taken for what: {caption}")
    page.figure(
        confusion_heatmap(newest.confusion, newest.classes),
        "Rows are labels and sum to 100 %; columns are predictions; a dot is less than half a percent",
    )
    for file, what in PICTURES.items():
        path = root / shown[-1] / file
        if path.exists():
            page.heading(f"{what}: {caption}")
            page.picture(path, f"{what} of {caption}: image, label, prediction, error")


def _run_section(page: Report, runs: pd.DataFrame, root: Path, curves: int) -> None:
    page.section("Training runs")
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
        page.table(table, f"{note}; val mIoU as the run measured it for its checkpoint rule; code {_versions(rows)}")
        _export(table, root, f"runs-{protocol}", f"Training runs under {protocol}. {note}")
    drawn = dict(list(tables.collect_curves(root).items())[-curves:])
    if drawn:
        page.figure(training_curves({Path(k).name: v for k, v in drawn.items()}), "Training curves; mIoU on val_split")


def _published_section(page: Report) -> None:
    page.section("Published numbers")
    page.text(
        "As their authors state them; nothing here was measured by us. One table a protocol. The paper's ablation"
        " tables could not be recovered. An empty cell is unknown."
    )
    published = tables.load_published()
    for dataset in ("cityscapes", "camvid"):
        page.figure(
            accuracy_speed(published, dataset=dataset),
            f"{dataset}: published accuracy and speed. Compare positions only within one device and one input size.",
        )
    shown = {}
    for key, table in tables.published_tables(published).items():
        networks = table.groupby("source", sort=False)["network"].agg(", ".join)
        sources = "; ".join(f"{source} ({names})" for source, names in networks.items())
        shown[key] = table.drop(columns="source"), f"source: {networks.index[0] if len(networks) == 1 else sources}"
    page.tables(shown)


def _export(table: pd.DataFrame, root: Path, name: str, caption: str) -> None:
    write_atomic(root / "tables" / f"{name}.csv", table.to_csv(index=False))
    write_atomic(root / "tables" / f"{name}.tex", tables.to_latex(table, caption, f"tab:{name}"))


def _seeds_collide(rows: pd.DataFrame) -> bool:
    """Whether one seed was used by several checkpoints that agree in everything else: these are no repetitions."""
    keys = [c for c in (*tables.REPETITION, "seed") if c in rows]
    return "checkpoint_sha" in rows and rows.duplicated(keys).any()


def _seeds(rows: pd.DataFrame) -> str:
    checkpoints = ", ".join(rows["checkpoint"].astype(str).unique()) if "checkpoint" in rows else "unstated"
    seeds = ", ".join(str(s) for s in rows["seed"].unique()) if "seed" in rows else "unstated"
    return f"seeds {seeds}; checkpoints {checkpoints}; code {_versions(rows)}"


def _versions(rows: pd.DataFrame) -> str:
    if "git_sha" not in rows:
        return "of unknown version"
    return ", ".join(str(sha)[:10] for sha in rows["git_sha"].unique())


def _short(evaluation: Evaluation, folder: str) -> str:
    p = evaluation.provenance
    network = " ".join(str(p[k]) for k in ("model", "revision") if p.get(k))
    seed = f", seed {p['seed']}" if "seed" in p else ""
    return f"{network or folder}{seed}, {evaluation.settings['split']} ({p.get('checkpoint', folder)})"
