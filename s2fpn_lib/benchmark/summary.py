"""One page about the results of `benchmark.gpu`: summary.html, with a chart and tables of what was measured."""

import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from s2fpn_lib.benchmark.ways import REFERENCE, SIZES
from s2fpn_lib.runs import read_rows, write_atomic

PLACE = ["network", "size", "batch"]
TIMES = ["p50_ms", "spread", "ratio", "ratio_low", "ratio_high"]
WORDS = {"p50_ms": "ms", "ratio": "times published", "ratio_low": "lowest", "ratio_high": "highest"}
WORDS |= dict.fromkeys(("fps", "images_per_s"), "images per second")
WORDS |= {"samples_per_s": "samples per second", "peak_mb": "peak MB", "max_difference": "difference of logits"}
WORDS |= {"miou": "mean IoU", "images_seen": "scored images trained on"}
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>GPU results</title><style>
body {{ font: 15px/1.5 sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #1f2933 }}
table {{ border-collapse: collapse; font-size: 13px }} td, th {{ padding: 2px 9px; text-align: right; border: 0 }}
tbody tr {{ border-top: 1px solid #dde3e9 }} img, svg {{ max-width: 100%; height: auto }}
</style>{body}</html>
"""


def write_page(out: Path) -> None:
    """Writes summary.html from the rows that are in `out`."""
    import pandas as pd

    names = ("tasks", "right", "speed", "training", "loader", "train", "failed")
    write_atomic(out / "summary.html", page({name: pd.DataFrame(read_rows(out / f"{name}.jsonl")) for name in names}))


def page(rows: dict[str, Any]) -> str:
    """The page from one DataFrame per file, any of which may be empty."""
    log, checks, speed, training, train = (rows[name] for name in ("tasks", "right", "speed", "training", "train"))
    machine = log.iloc[0]
    body = f"<h1>GPU results</h1><p>{escape(', '.join(machine['gpus']) or 'no GPU')}; "
    body += f"{escape(machine['cpu'])}; torch {machine['torch']}; {machine['time']}</p>"
    if len(checks):
        body += f"<h2>Is it right?</h2><p>{checks['ok'].sum()} of {len(checks)} checks passed.</p>"
        body += table("", checks.groupby("check", sort=False)["ok"].agg(passed="sum", of="size").reset_index())
        body += table("<h3>Not passed</h3>", checks[~checks["ok"].astype(bool)].dropna(axis=1, how="all"))
    for frame in (speed, training):
        if len(frame):
            frame["size"] = frame["height"].astype(str) + "x" + frame["width"].astype(str)
    if len(speed):
        speed["network"] += " " + speed["revision"]
        speed["way"] = speed["backend"] + " " + speed["precision"]
        network = speed[speed["stage"] == "network"].sort_values([*PLACE, "ratio"])
        network = network.drop_duplicates([*PLACE, "way"], keep="last")
        best, note = network.drop_duplicates(PLACE, keep="last"), "Ratios are to the published way in TF32."
        body += "<h2>How fast is it?</h2>" + chart(network)
        body += table(f"<h3>The fastest ways</h3><p>{note}</p>", best, [*PLACE, "way", *TIMES, "fps", "peak_mb"])
        whole = speed[speed["stage"] != "network"]
        body += table("<h3>From the uint8 image to class ids</h3>", whole, [*PLACE, "way", *TIMES, "fps"])
        body += table("<h3>All ways</h3>", network, [*PLACE, "way", *TIMES, "max_difference"])
    body += table("<h2>Training step</h2>", training, [*PLACE, "way", *TIMES, "images_per_s", "peak_mb"])
    body += table("<h3>Loader</h3>", rows["loader"], ["way", "workers", "batch", "p50_ms", "samples_per_s"])
    known = ["preset", "dataset", "model", "epochs", "steps", "seconds", "images_per_s", "miou", "images_seen"]
    body += table("<h2>Training</h2>", train, known)
    body += "".join(f'<h3>{each}</h3><img src="{each}/predictions.png">' for each in train.get("preset", ()))
    problems = log[~log["status"].isin(["started", "done"])].reindex(columns=["part", "task", "status", "error"])
    body += "<h2>What failed or was left out</h2>" + table("", problems) + table("", rows["failed"])
    return PAGE.format(body=body)


def table(title: str, rows: Any, columns: Sequence[str] | None = None) -> str:
    """`title` and the rows' `columns` (None: all) in words; nothing where there are no rows."""
    if rows.empty:
        return ""
    rows = (rows[columns] if columns else rows).rename(columns=WORDS)
    return title + rows.to_html(index=False, border=0, float_format=lambda value: f"{value:.4g}", na_rep="")


def chart(rows: Any) -> str:
    """Bars of the images per second of each way, one panel per network at the first size, as SVG."""
    import matplotlib.pyplot as plt

    from s2fpn_lib.viz.style import COLORS, MUTED, STYLE

    sizes = [f"{height}x{width}" for height, width in SIZES]
    place = next((size for size in sizes if size in set(rows["size"])), rows["size"].iloc[0])
    rows = rows[(rows["size"] == place) & (rows["batch"] == rows["batch"].min())]
    groups = list(rows.groupby("network", sort=False))
    with plt.rc_context({**STYLE, "svg.fonttype": "none"}):
        heights = [len(group) for _, group in groups]
        options = {"figsize": (9, 1.0 * len(groups) + 0.3 * sum(heights)), "layout": "constrained", "squeeze": False}
        figure, axes = plt.subplots(len(groups), 1, height_ratios=heights, **options)
        for axis, (network, group) in zip(axes[:, 0], groups, strict=True):
            colors = [MUTED if way == " ".join(REFERENCE) else COLORS[0] for way in group["way"]]
            bars = axis.barh(group["way"], group["fps"], color=colors)
            labels = [f"{fps:.0f} ({ratio:.1f}x)" for fps, ratio in zip(group["fps"], group["ratio"], strict=True)]
            axis.bar_label(bars, labels, padding=4)
            axis.set(title=f"{network} at {place}", xlabel="images per second", xlim=(0, 1.2 * group["fps"].max()))
            axis.grid(axis="y", visible=False)
        file = io.StringIO()
        figure.savefig(file, format="svg")
        plt.close(figure)
    return file.getvalue().partition("?>\n")[2]
