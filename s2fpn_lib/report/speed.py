"""Tables of speed, and the remarks on rows whose times mean little."""

import pandas as pd

from s2fpn_lib.report.collect import METHOD, PLACE, latest_speed
from s2fpn_lib.report.tables import network_name, percent, protocol_name, provenance, seen_words, words

NOISY, FREE = 0.15, 0.9  # the largest spread over the repeats, and the least share of its cores that a process gets
SPREAD = "Spread: the slowest minus the fastest repeat, as a share of the median."
NUMBERS = ["fps", "p50_ms", "p90_ms", "spread", "ratio", "parameters_m", "gmacs", "miou"]
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
    same = [
        c
        for c in ("all", *PLACE, "network", "revision", "checkpoint_sha", "run", "kind")
        if c in known and c != "stage"
    ]
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


def speed_tables(speed: pd.DataFrame) -> dict[str, tuple[pd.DataFrame, str]]:
    """{title: (table, provenance)}: one table per device, input size, batch size, stage, and protocol of the scores.

    speed: of `collect_speed`. The latest of repeated measurements are shown, the fastest first. Rows with a remark
    follow in one table, and then, as they are, rows that 12_speed did not write, which may lack anything.
    """
    padded = speed.reindex(columns=speed.columns.union([*PLACE, *METHOD, "fps", "protocol"], sort=False))
    complete = padded[[*PLACE, *METHOD, "fps"]].drop(columns="revision").notna().all(axis=1)
    latest = with_remarks(latest_speed(padded[complete])).sort_values("fps", ascending=False, kind="stable")
    out, good = {}, latest["remark"] == ""
    for _, rows in latest[good].groupby([*PLACE, "protocol"], dropna=False, sort=False):
        row = rows.iloc[0]
        title = f"{row['height']:g}x{row['width']:g}, batch {row['batch']:g}, {row['stage']}, {row['device']}"
        if not pd.isna(row["protocol"]):
            title += f", weights scored on {protocol_name(row['protocol'])}"
        out[title] = _speed_table(rows, []), f"{provenance(rows, ['device'])}. {SPREAD}"
    if not good.all():
        rows = latest[~good].astype(dict.fromkeys(("height", "width", "batch"), int))
        table = _speed_table(rows, ["device", "height", "width", "batch", "stage", "remark"])
        out["rows with a remark"] = table, "These times mean little; they are in no chart and no ratio."
    if not complete.all():
        out["other rows"] = speed[~complete], "As found in the files that the first column names."
    return out


def _speed_table(rows: pd.DataFrame, more: list[str]) -> pd.DataFrame:
    kept = [key for key in NUMBERS if key in rows and rows[key].notna().any()]
    table = words(rows[["backend", "precision", *kept, *more]])
    table.insert(0, "network", list(map(network_name, rows["network"], rows["revision"].fillna(""))))
    if any(seen := seen_words(rows)):
        table["scored images trained on"] = seen
    return table
