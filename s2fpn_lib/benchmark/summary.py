"""One page about the results of `benchmark.gpu`: summary.html, with a chart and tables of what was measured."""

import io
from html import escape
from pathlib import Path
from typing import Any

from s2fpn_lib.runs import read_rows, write_atomic

FILES = ("tasks", "right", "speed", "training", "loader", "train", "failed")
TIMES = ["p50_ms", "spread", "ratio", "ratio_low", "ratio_high"]
PLACE = ["network", "size", "batch"]
WORDS = {"p50_ms": "ms", "ratio": "times published", "ratio_low": "lowest", "ratio_high": "highest", "miou": "mean IoU"}
WORDS |= {"fps": "images per second", "images_per_s": "images per second", "samples_per_s": "samples per second"}
WORDS |= {"peak_mb": "peak MB", "max_difference": "difference of logits", "images_seen": "scored images trained on"}


def write_page(out: Path) -> None:
    """Writes summary.html from the rows that are in `out`; files of rows may be missing."""
    import pandas as pd

    frames = (pd.DataFrame(read_rows(out / f"{name}.jsonl")) for name in FILES)
    log, right, speed, training, loader, train, failed = frames
    about = log.iloc[0]
    parts = ["<h1>GPU results</h1>", ", ".join([*about["gpus"], escape(about["cpu"]), about["torch"], about["time"]])]
    if len(right):
        parts.append(f"<h2>Is it right?</h2>{right['ok'].sum()} of {len(right)} checks passed.")
        right["largest difference"] = right.get("relative")
        columns = {"passed": ("ok", "sum"), "of": ("ok", "size"), "largest difference": ("largest difference", "max")}
        parts.append(table("", right.groupby("check", sort=False).agg(**columns).reset_index()))
        parts.append(table("<h3>Not passed</h3>", right[~right["ok"]].dropna(axis=1, how="all")))
    for rows in filter(len, (speed, training)):
        rows["size"] = rows["height"].astype(str) + "x" + rows["width"].astype(str)
    if len(speed):
        size = speed["size"][0]  # the plan starts with the most telling one
        speed = speed.assign(network=speed["network"] + " " + speed["revision"])
        speed["way"] = speed["backend"] + " " + speed["precision"]
        speed = speed.sort_values([*PLACE, "stage", "ratio"]).drop_duplicates([*PLACE, "stage", "way"], keep="last")
        ways = speed[speed["stage"] == "network"]
        parts.append("<h2>How fast is it?</h2>Ratios are to the published way in TF32." + chart(ways, size))
        best = ways.drop_duplicates(PLACE, keep="last")
        parts.append(table("<h3>The fastest ways</h3>", best, [*PLACE, "way", *TIMES, "fps", "peak_mb"]))
        parts.append(table("<h3>All ways</h3>", speed, ["stage", *PLACE, "way", *TIMES, "max_difference"]))
    parts.append(table("<h2>Training step</h2>", training, [*PLACE, "way", *TIMES, "images_per_s", "peak_mb"]))
    parts.append(table("<h3>Loader</h3>", loader, ["way", "workers", "batch", "p50_ms", "samples_per_s"]))
    known = ["preset", "dataset", "model", "epochs", "steps", "seconds", "images_per_s", "miou", "images_seen"]
    parts.append(table("<h2>Training</h2>", train, known))
    parts += [f'<h3>{each}</h3><img src="{each}/predictions.png">' for each in train.get("preset", ())]
    problems = log[~log["status"].isin(["started", "done"])].reindex(columns=["part", "task", "status", "error"])
    parts.append(table("<h2>What failed or was left out</h2>", problems) + table("", failed))
    css = Path(__file__).with_suffix(".css").read_text()
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>GPU results</title><style>{css}</style>"
    write_atomic(out / "summary.html", head + "\n".join(parts))


def table(title: str, rows: Any, columns: list[str] | None = None) -> str:
    """`title` and the rows' `columns` (None: all) in words; nothing where there are no rows."""
    if rows.empty:
        return ""
    rows = (rows.reindex(columns=columns) if columns else rows).rename(columns=WORDS)
    return title + rows.to_html(index=False, border=0, float_format=lambda value: f"{value:.4g}", na_rep="")


def chart(rows: Any, size: str) -> str:
    """Images per second of each way, one panel per network, at `size` and the smallest batch size, as SVG."""
    import matplotlib.pyplot as plt

    from s2fpn_lib.viz.style import COLORS, STYLE

    rows = rows[(rows["size"] == size) & (rows["batch"] == rows["batch"].min())]
    wide, file = rows.pivot(index="way", columns="network", values="fps"), io.StringIO()
    with plt.rc_context({**STYLE, "svg.fonttype": "none", "figure.constrained_layout.use": True}):
        options = {"subplots": True, "sharex": False, "legend": False, "color": COLORS[0], "width": 0.8, "ylabel": ""}
        size_in = (9, 0.9 + 0.3 * wide.size)
        for axis in wide.plot.barh(figsize=size_in, xlabel=f"images per second at {size}", **options):
            axis.bar_label(axis.containers[0], fmt="%.0f", padding=4)
            axis.margins(x=0.1)
        plt.gcf().savefig(file, format="svg")
        plt.close()
    return file.getvalue().partition("?>\n")[2]
