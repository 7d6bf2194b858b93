"""Tables of speed, parameters, and multiply-accumulates."""

from __future__ import annotations

import pandas as pd

from s2fpn_lib.report.collect import METHOD, PLACE, latest_speed, network_cost
from s2fpn_lib.report.tables import fixed, network_name, percent, provenance

COST_NETWORKS = ("s2fpn_lite", "s2fpn18", "s2fpn34", "s2fpn34m")
SPREAD = "Spread: the slowest minus the fastest repeat, as a share of the median."
COST_SIZE, COST_CLASSES = (512, 1024), 19  # the input of the published numbers


def cost_table() -> pd.DataFrame:
    """Parameters and multiply-accumulates of the inference path at 512x1024 with 19 classes, counted afresh."""
    rows = []
    for model in COST_NETWORKS:
        for revision in ("v1", "v2"):
            cost = network_cost(model, revision, "none", COST_CLASSES, COST_SIZE)
            rows.append((network_name(model, revision), f"{cost.megaparameters:.2f}", f"{cost.gigamacs:.2f}"))
    return pd.DataFrame(rows, columns=["network", "parameters M", "GMACs"])


def speed_tables(speed: pd.DataFrame) -> dict[str, tuple[pd.DataFrame, str]]:
    """{title: (table, provenance)}: one table per device, input size, batch size, stage, and protocol of the scores.

    speed: of `collect_speed`. Only the latest of repeated measurements is shown. Rows that 12_speed did not write may
    lack anything; they come last, as they are.
    """
    if speed.empty:
        return {}
    complete = speed.reindex(columns=[*PLACE, *METHOD, "fps"]).drop(columns="revision").notna().all(axis=1)
    out = {}
    groups = [*PLACE, *(["protocol"] if "protocol" in speed else [])]
    for _, rows in latest_speed(speed[complete]).groupby(groups, dropna=False, sort=False):
        row = rows.iloc[0]
        title = f"{row['height']:g}x{row['width']:g}, batch {row['batch']:g}, {row['stage']}, {row['device']}"
        if not pd.isna(row.get("protocol")):
            title += f", weights scored under {row['protocol']}"
        out[title] = speed_table(rows), f"{provenance(rows, ['device'])}. {SPREAD}"
    if not complete.all():
        out["other rows"] = speed[~complete], "As found in the files that the first column names."
    return out


def speed_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of one device, input size, batch size, and stage as the table to print, fastest first."""
    rows = rows.sort_values("fps", ascending=False, kind="stable").reset_index(drop=True)
    names = [network_name(row.network, row.revision) for row in rows.fillna({"revision": ""}).itertuples()]
    out = pd.DataFrame({"network": names, "backend": rows["backend"], "precision": rows["precision"]})
    numbers = {
        "fps": ("FPS", 1),
        "p50_ms": ("median ms", 2),
        "p90_ms": ("90th percentile ms", 2),
        "spread": ("spread %", 1),
        "ratio": ("times the published implementation", 2),
        "parameters_m": ("parameters M", 3),
        "gmacs": ("GMACs", 2),
        "miou": ("mIoU %", 2),
    }
    for key, (name, digits) in numbers.items():
        if key in rows and rows[key].notna().any():
            shares = key in ("spread", "miou")
            out[name] = [percent(v, digits=digits) for v in rows[key]] if shares else fixed(rows[key], digits)
    return out
