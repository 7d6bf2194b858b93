"""The report's pages on speed: accuracy against speed, the speed tables, parameters and multiply-accumulates."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from s2fpn_lib.report.collect import WAY, WHERE, latest_speed
from s2fpn_lib.report.export_table import export_table
from s2fpn_lib.report.measured_points import measured_points
from s2fpn_lib.report.page import Report
from s2fpn_lib.report.results_table import network_cost
from s2fpn_lib.report.tables import load_published, network_name, percent
from s2fpn_lib.viz.charts import accuracy_speed

COST_NETWORKS = ("s2fpn_lite", "s2fpn18", "s2fpn34", "s2fpn34m")
COST_SIZE, COST_CLASSES = (512, 1024), 19  # where the published numbers are given


def speed_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of one device, size, batch and stage as the table to print, fastest first."""
    rows = rows.sort_values("fps", ascending=False, kind="stable")
    out = pd.DataFrame(
        {
            "network": [network_name(r.network, r.revision) for r in rows.fillna({"revision": ""}).itertuples()],
            "backend": rows["backend"].to_numpy(),
            "precision": rows["precision"].to_numpy(),
            "FPS": [f"{value:.1f}" for value in rows["fps"]],
            "p50 ms": [f"{value:.2f}" for value in rows["p50_ms"]],
            "p90 ms": [f"{value:.2f}" for value in rows["p90_ms"]],
            "spread %": [percent(value, digits=1) for value in rows["spread"]],
        }
    )
    extra = {"ratio": ("times published way", 2), "parameters_m": ("parameters M", 3), "gmacs": ("GMACs", 2)}
    for column, (name, digits) in extra.items():
        if column in rows and rows[column].notna().any():
            out[name] = ["" if pd.isna(value) else f"{value:.{digits}f}" for value in rows[column]]
    if "miou" in rows and rows["miou"].notna().any():
        out["mIoU %"] = [percent(value) for value in rows["miou"]]
    return out


def cost_table() -> pd.DataFrame:
    """Parameters and multiply-accumulates of the inference path at 512x1024 with 19 classes, counted afresh."""
    rows = []
    for model in COST_NETWORKS:
        for revision in ("v1", "v2"):
            cost = network_cost(model, revision, "none", COST_CLASSES, COST_SIZE)
            name = network_name(model, revision)
            row = {"network": name, "parameters M": f"{cost.megaparameters:.2f}", "GMACs": f"{cost.gigamacs:.2f}"}
            rows.append(row)
    return pd.DataFrame(rows)


def accuracy_speed_section(page: Report, evaluations: pd.DataFrame, speed: pd.DataFrame, root: Path) -> None:
    """Our points beside the published ones, one figure a dataset, and the table of our points."""
    page.section("Accuracy and speed")
    points = measured_points(evaluations, speed)
    page.text(
        "Published points as their authors state them. Ours are stars: the accuracy of our own weights with the speed"
        " of the same network measured here. Positions may only be compared within one device, one input size and one"
        " split, which every point names."
    )
    if points.empty:
        page.note(
            "No network here has both an accuracy and a speed: run 11_evaluate and 12_speed at its protocol's size."
        )
    published = load_published()
    for dataset in dict.fromkeys(("cityscapes", "camvid", *points["dataset"])):
        ours = points[points["dataset"] == dataset]
        page.figure(
            accuracy_speed(published, ours, dataset=dataset),
            f"{dataset}: accuracy and speed{' as published' * ours.empty}",
        )
    for protocol, rows in points.groupby("protocol"):
        table = rows.drop(columns=["dataset", "protocol"]).reset_index(drop=True)
        table["mIoU %"] = [f"{value:.2f}" for value in table.pop("miou_percent")]
        table["FPS"] = [f"{value:.1f}" for value in table.pop("fps")]
        page.heading(f"Our points: {protocol}")
        page.table(table, "mIoU: mean over seeds of whole splits. FPS: one image at a time, of the row's stage.")
        export_table(table, root / "tables", f"accuracy-speed-{protocol}", f"Accuracy and speed under {protocol}")


def speed_section(page: Report, speed: pd.DataFrame, root: Path) -> None:
    """Speed, one table a device, input size, batch and stage; where rows carry scores, one a protocol as well."""
    page.section("Speed, parameters and multiply-accumulates")
    cost = cost_table()
    page.heading(f"Cost at {COST_SIZE[0]}x{COST_SIZE[1]}, {COST_CLASSES} classes")
    note = "Inference path, without auxiliary heads; one GMAC is 1e9 multiply-accumulates. Counted with this page."
    page.table(cost, note)
    export_table(cost, root / "tables", "cost", note)
    if speed.empty:
        page.note("No speed has been measured in this results folder: run 12_speed on an idle machine.")
        return
    if not _complete(speed):
        page.table(speed, "as found in the files named in the first column")
        return
    keys = [*WHERE, *(["protocol"] if "protocol" in speed else [])]
    for key, rows in latest_speed(speed).groupby(keys, dropna=False, sort=False):
        at = dict(zip(keys, key, strict=True))
        where = f"{int(at['height'])}x{int(at['width'])}, batch {int(at['batch'])}, {at['stage']}"
        if not pd.isna(at.get("protocol")):
            where += f", weights scored under {at['protocol']}"
        page.heading(where)
        table = speed_table(rows)
        versions = ", ".join(sorted(rows["torch"].dropna().unique())) if "torch" in rows else "unstated"
        note = f"{at['device']}; torch {versions}; code {', '.join(sorted({str(s)[:10] for s in rows['git_sha']}))}"
        page.table(table, f"{note}. Spread: slowest minus fastest repeat, as a share of the median.")
        export_table(table, root / "tables", f"speed-{where}-{at['device']}", f"Speed at {where}; {note}")


def _complete(speed: pd.DataFrame) -> bool:
    """Whether the rows are those of 12_speed; a file of another origin may lack anything."""
    return {*WHERE, *WAY, "fps", "p50_ms", "p90_ms", "spread", "git_sha"} <= set(speed)
