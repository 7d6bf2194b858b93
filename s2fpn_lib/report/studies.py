"""The report's pages on studies: the ablation against the full network, seed by seed, and what failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from s2fpn_lib.evaluate import Evaluation
from s2fpn_lib.metrics import ConfusionMatrix
from s2fpn_lib.report import collect, tables
from s2fpn_lib.report.ablation_plots import ablation_bars
from s2fpn_lib.report.export_table import export_table
from s2fpn_lib.report.page import Report
from s2fpn_lib.report.paired import ablation_table, comparable_parts, reference_variant, seed_differences
from s2fpn_lib.report.scores import class_scores, compare_samples, repetition_keys, versions
from s2fpn_lib.viz.charts import confusion_heatmap, training_curves
from s2fpn_lib.workbench.studies import failures

NO_PUBLISHED_ABLATION = (
    "The paper's ablation tables could not be recovered, so the column of published numbers is empty (–): these"
    " differences stand beside nothing."
)
COMPARED = 5  # variants in one row of pictures


def study_sections(page: Report, frame: pd.DataFrame, evaluations: Mapping[str, Evaluation], root: Path) -> None:
    """frame: of `report_scores.scored_rows`, with its rows that belong to a study; one section a study."""
    parts = list(comparable_parts(frame))
    for study in dict.fromkeys(part["study"].iloc[0] for part in parts):
        page.section(f"Study: {study}")
        page.text(
            "Every variant is trained alike but for what its name says. The difference is paired: the variant's mIoU"
            " minus the full network's of the same seed, averaged over the seeds that both have; ± is the sample"
            " standard deviation over seeds. A difference smaller than its spread shows nothing."
        )
        own = [part for part in parts if part["study"].iloc[0] == study]
        places = Counter(_place(part) for part in own)
        for part in own:
            recipe = f", recipe {part['training_recipe'].iloc[0]}" if places[_place(part)] > 1 else ""
            _study_tables(page, part, f"{_place(part)}{recipe}", evaluations, root)


def failure_section(page: Report, root: Path) -> None:
    """Every notebook of a study whose last attempt failed: folder, notebook, cell, error."""
    failed = failures(root)
    if not failed:
        return
    page.section("What failed")
    page.note(
        f"{len(failed)} notebook{'s' * (len(failed) > 1)} of a study failed; the others are not affected, and no"
        " number of these is in any table. Start the study again to retry them."
    )
    columns = ["folder", "notebook", "cell", "error", "time"]
    table = pd.DataFrame(failed).reindex(columns=columns)
    page.table(table, "failure.json of each folder, under the results folder")
    export_table(table, root / "tables", "failures", "Notebooks of studies whose last attempt failed")


def _place(part: pd.DataFrame) -> str:
    """ "ablation: roadscenes, val, 40 images": what a table's title says."""
    row = part.iloc[0]
    images = f", {row['images']} images" * bool(row["images"] < row["images_in_split"])
    return f"{row['study']}: {row['protocol']}, {row['split']}{images}"


def _study_tables(
    page: Report, rows: pd.DataFrame, title: str, evaluations: Mapping[str, Evaluation], root: Path
) -> None:
    """One table and its figures: rows are of one part of `comparable_parts`."""
    scored = rows.iloc[0]
    name = f"study-{title.replace(':', '')}"
    page.heading(title)
    if scored["images"] < scored["images_in_split"]:
        page.note(f"Only {scored['images']} of the {scored['images_in_split']} images of the split were scored.")
    table = ablation_table(rows)
    compared = not seed_differences(rows).empty
    if not compared:
        table = table.drop(columns=["difference to full, points", "seeds lower", "published"])
    seeds = ", ".join(str(seed) for seed in sorted(rows["seed"].unique()))
    note = f"{tables.constants(rows)}; seeds {seeds}; code {versions(rows)}"
    page.table(table, f"{note}. {NO_PUBLISHED_ABLATION}" if compared else note)
    export_table(table, root / "tables", name, f"Study {title}. {note}")
    if compared:
        page.figure(ablation_bars(rows), f"{title}: bars are means of paired differences, every dot is a seed")
    class_scores(page, rows, f"{name}-classes", repetition_keys(rows), root)
    _curves(page, rows, root)
    _full_network(page, rows, evaluations)
    compare_samples(page, _first_seed(rows), root)


def _curves(page: Report, rows: pd.DataFrame, root: Path) -> None:
    """Training curves, one a variant: the mean over its seeds, of the epochs that all have reached."""
    curves = collect.collect_curves(root)
    named: dict[str, list[pd.DataFrame]] = {}
    for row in rows.to_dict("records"):
        run = f"{row['evaluation']}/run"
        if run in curves:
            named.setdefault(_label(row, rows), []).append(pd.DataFrame(curves[run])[["epoch", "loss", "val_miou"]])
    means = {label: pd.concat(found).groupby("epoch", as_index=False).mean() for label, found in named.items()}
    if means:
        drawn = {label: mean.to_dict("records") for label, mean in means.items()}
        page.figure(training_curves(drawn), "Training curves: loss and validation mIoU, mean over seeds")


def _full_network(page: Report, rows: pd.DataFrame, evaluations: Mapping[str, Evaluation]) -> None:
    """The full network's confusion matrix, the sum over its seeds."""
    full = rows[rows["variant"] == reference_variant(rows)]
    if full.empty:
        return
    first = evaluations[full["evaluation"].iloc[0]]
    total = ConfusionMatrix(first.confusion.num_classes, first.confusion.ignore_index)
    for folder in full["evaluation"]:
        total.merge(evaluations[folder].confusion)
    page.heading("What the full network takes for what")
    page.figure(
        confusion_heatmap(total, first.classes),
        f"Sum over {len(full)} runs; rows are labels and sum to 100 %; a dot is less than half a percent",
    )


def _first_seed(rows: pd.DataFrame) -> dict[str, str]:
    """{variant: evaluation's folder} of the lowest seed, the full network first, at most `COMPARED`."""
    seed = rows["seed"].min()
    full = reference_variant(rows)
    chosen = sorted(rows[rows["seed"] == seed].to_dict("records"), key=lambda row: row["variant"] != full)
    return {f"{_label(row, rows)}, seed {seed}": row["evaluation"] for row in chosen[:COMPARED]}


def _label(row: Mapping, rows: pd.DataFrame) -> str:
    """The variant, with model and revision where the study has several."""
    several = [c for c in ("model", "revision") if rows[c].nunique() > 1]
    return ", ".join([str(row["variant"]), *(str(row[c]) for c in several)])
