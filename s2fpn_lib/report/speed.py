"""Remarks on speed rows whose times mean little."""

import pandas as pd

from s2fpn_lib.report.collect import PLACE
from s2fpn_lib.report.tables import percent

NOISY, FREE = 0.15, 0.9  # the largest spread over the repeats, and the least share of its cores that a process gets
RATIOS = ["ratio", "ratio_low", "ratio_high"]


def with_remarks(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with `remark`: why a time means little, empty where nothing speaks against it.

    - "noisy": the repeats differ by more than `NOISY` of the median.
    - "busy machine": other processes had the cores for more than 1 - `FREE` of the time.
    - "faster than its network": an end-to-end time below that of the network which it contains.

    Such a row has no ratio, and neither have the rows that were compared with it. rows: of `measure_rows` or any other
    benchmark; columns that they lack raise no remark.
    """
    known = rows.reindex(columns=rows.columns.union(["stage", "p50_ms", "spread", "cpu_share", "backend", "way"]))
    known["all"] = 0  # the group of all rows, where they have none of the other columns
    same = ["all", *PLACE, "network", "revision", "checkpoint_sha", "run", "kind"]
    same = [c for c in same if c in known and c != "stage"]
    method = [*same, *(c for c in ("backend", "precision") if c in known)]
    network = known[known["stage"] == "network"].drop_duplicates(method, keep="last")
    inside = known[method].merge(network[[*method, "p50_ms"]], on=method, how="left")["p50_ms"].set_axis(rows.index)
    remarks = pd.Series("", index=rows.index)
    for found, text in (
        (known["spread"] > NOISY, "noisy: repeats differ by " + known["spread"].map(percent).astype(str) + " %"),
        (known["cpu_share"] < FREE, "busy machine: " + known["cpu_share"].map(percent).astype(str) + " % of its cores"),
        ((known["stage"] == "end to end") & (known["p50_ms"] < inside), "faster than its network"),
    ):
        remarks = remarks.where(~found, remarks.where(remarks == "", remarks + "; ") + text)
    reference = (known[["backend", "way"]] == "published").any(axis=1) & (remarks != "")
    alone = reference.groupby([known[c] for c in (*same, "stage")], dropna=False).transform("any")
    ratios = {c: rows[c].astype(float).mask(alone | (remarks != "")) for c in RATIOS if c in rows}
    return rows.assign(remark=remarks, **ratios)
