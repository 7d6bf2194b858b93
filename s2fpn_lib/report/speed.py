"""Tables of speed, parameters, and multiply-accumulates."""

import itertools

import pandas as pd

from s2fpn_lib.report.collect import METHOD, PLACE, latest_speed, network_cost
from s2fpn_lib.report.tables import fixed, network_name, percent, provenance, seen_words

SPREAD = "Spread: the slowest minus the fastest repeat, as a share of the median."
NUMBERS = {  # stored key -> heading, decimals
    "fps": ("FPS", 1),
    "p50_ms": ("median ms", 2),
    "p90_ms": ("90th percentile ms", 2),
    "spread": ("spread %", 1),
    "ratio": ("times the published implementation", 2),
    "parameters_m": ("parameters M", 3),
    "gmacs": ("GMACs", 2),
    "miou": ("mIoU %", 2),
}


def cost_table() -> pd.DataFrame:
    """Parameters and multiply-accumulates of the inference path at 512x1024 with 19 classes, counted afresh."""
    rows = []
    for network in itertools.product(("s2fpn_lite", "s2fpn18", "s2fpn34", "s2fpn34m"), ("v1", "v2")):
        cost = network_cost(*network, "none", 19, (512, 1024))  # the input of the published numbers
        rows.append((network_name(*network), f"{cost.megaparameters:.2f}", f"{cost.gigamacs:.2f}"))
    return pd.DataFrame(rows, columns=["network", "parameters M", "GMACs"])


def speed_tables(speed: pd.DataFrame) -> dict[str, tuple[pd.DataFrame, str]]:
    """{title: (table, provenance)}: one table per device, input size, batch size, stage, and protocol of the scores.

    speed: of `collect_speed`. The latest of repeated measurements are shown, the fastest first; rows that 12_speed did
    not write, which may lack anything, come last, as they are.
    """
    padded = speed.reindex(columns=speed.columns.union([*PLACE, *METHOD, "fps", "protocol"], sort=False))
    complete = padded[[*PLACE, *METHOD, "fps"]].drop(columns="revision").notna().all(axis=1)
    out = {}
    for _, rows in latest_speed(padded[complete]).groupby([*PLACE, "protocol"], dropna=False, sort=False):
        rows = rows.sort_values("fps", ascending=False, kind="stable").reset_index(drop=True)
        row = rows.iloc[0]
        title = f"{row['height']:g}x{row['width']:g}, batch {row['batch']:g}, {row['stage']}, {row['device']}"
        if not pd.isna(row["protocol"]):
            title += f", weights scored under {row['protocol']}"
        table = rows[["backend", "precision"]].copy()
        table.insert(0, "network", list(map(network_name, rows["network"], rows["revision"].fillna(""))))
        for key, (name, digits) in NUMBERS.items():
            if key in rows and rows[key].notna().any():
                shares = key in ("spread", "miou")
                table[name] = [percent(v, digits=digits) for v in rows[key]] if shares else fixed(rows[key], digits)
        if any(seen := seen_words(rows)):
            table["scored images trained on"] = seen
        out[title] = table, f"{provenance(rows, ['device'])}. {SPREAD}"
    if not complete.all():
        out["other rows"] = speed[~complete], "As found in the files that the first column names."
    return out
