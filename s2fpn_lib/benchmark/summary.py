"""One page about the results of `benchmark.gpu`: summary.html, with a chart and tables of what was measured."""

import io
from html import escape
from pathlib import Path
from typing import Any

from s2fpn_lib.benchmark.ways import REFERENCE, SIZES
from s2fpn_lib.runs import read_rows, write_atomic

GROUP = ["network", "size", "batch"]
TIMES = ["p50_ms", "spread", "ratio", "ratio_low", "ratio_high"]
WORDS = {
    "p50_ms": "ms",
    "ratio": "times published",
    "ratio_low": "lowest",
    "ratio_high": "highest",
    "fps": "images per second",
}
WORDS |= {"images_per_s": "images per second", "samples_per_s": "samples per second", "peak_mb": "peak MB"}
WORDS |= {"max_difference": "difference of logits", "miou": "mean IoU", "images_seen": "scored images trained on"}
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>GPU results</title><style>
body {{ font: 15px/1.5 sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #1f2933 }}
table {{ border-collapse: collapse; font-size: 13px }} td, th {{ padding: 2px 9px; text-align: right; border: 0 }}
tbody tr {{ border-top: 1px solid #dde3e9 }} th {{ text-align: left }} svg {{ max-width: 100%; height: auto }}
</style><h1>{title}</h1>{body}</html>
"""


def write_page(out: Path) -> None:
    """Writes summary.html from the rows that are in `out`."""
    import pandas as pd

    names = ("tasks", "right", "speed", "training", "loader", "train", "failed")
    write_atomic(out / "summary.html", page({name: pd.DataFrame(read_rows(out / f"{name}.jsonl")) for name in names}))


def page(rows: dict[str, Any]) -> str:
    """The page from one DataFrame per file, any of which may be empty."""
    log = rows["tasks"]
    machine = log.iloc[0]
    gpus = ", ".join(machine["gpus"]) if machine.get("gpus") else "no GPU"
    body = f"<p>{escape(gpus)}; {escape(str(machine['cpu']))}; torch {machine['torch']}; {machine['time']}</p>"
    checks, speed, training = rows["right"], rows["speed"], rows["training"]
    if len(checks):
        wrong = checks[~checks["ok"].astype(bool)]
        body += f"<h2>Is it right?</h2><p>{len(checks) - len(wrong)} of {len(checks)} checks passed.</p>"
        counts = checks.groupby("check", sort=False)["ok"].agg(["sum", "size"])
        body += table(counts.set_axis(["passed", "of"], axis=1).reset_index())
        if len(wrong):
            body += "<h3>Not passed</h3>" + table(wrong.dropna(axis=1, how="all"))
    if len(speed):
        speed = speed.assign(network=speed["network"] + " " + speed["revision"])
        speed["way"] = speed["backend"] + " " + speed["precision"]
        speed["size"] = speed["height"].astype(str) + "x" + speed["width"].astype(str)
        network = speed[speed["stage"] == "network"].sort_values("ratio").drop_duplicates([*GROUP, "way"], keep="last")
        best = network.drop_duplicates(GROUP, keep="last").sort_values(GROUP)
        body += "<h2>How fast is it?</h2>" + chart(network)
        body += "<p>The fastest way of each network. Ratios are to the published way, whose convolutions use TF32.</p>"
        body += table(best[[*GROUP, "way", *TIMES, "fps", "peak_mb"]])
        rest = speed[speed["stage"] != "network"]
        if len(rest):
            body += "<h3>From the uint8 image to class ids</h3>" + table(rest[[*GROUP, "way", *TIMES, "fps"]])
        body += "<h3>All ways</h3>" + table(
            network.sort_values([*GROUP, "ratio"])[[*GROUP, "way", *TIMES, "max_difference"]]
        )
    if len(training):
        body += "<h2>Training step</h2>"
        training["size"] = training["height"].astype(str) + "x" + training["width"].astype(str)
        body += table(training[["network", "size", "batch", "way", *TIMES, "images_per_s", "peak_mb"]])
    if len(rows["loader"]):
        body += "<h3>Loader</h3>" + table(rows["loader"][["way", "workers", "batch", "p50_ms", "samples_per_s"]])
    if len(rows["train"]):
        known = ["preset", "dataset", "model", "epochs", "steps", "seconds", "images_per_s", "miou", "images_seen"]
        body += "<h2>Training</h2>" + table(rows["train"].reindex(columns=known))
        body += "".join(f'<h3>{p}</h3><img src="{p}/predictions.png" width="100%">' for p in rows["train"]["preset"])
    problems = log[~log["status"].isin(["started", "done"])].reindex(columns=["part", "task", "status", "error"])
    body += "<h2>What failed or was left out</h2>" + table(problems) + table(rows["failed"])
    return PAGE.format(title="GPU results", body=body)


def table(rows: Any) -> str:
    rows = rows.rename(columns=WORDS)
    return rows.to_html(index=False, border=0, float_format=lambda value: f"{value:.4g}", na_rep="")


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
