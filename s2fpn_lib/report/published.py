"""Published numbers with their sources, and the accuracy and speed measured here beside them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from s2fpn_lib.data import get_protocol
from s2fpn_lib.report.collect import is_demo, latest_speed
from s2fpn_lib.report.tables import network_name, one_protocol, over_seeds, percent, split_by_protocol

PUBLISHED = Path(__file__).resolve().parent / "published.csv"
POINT = ["dataset", "protocol", "model", "revision", "split", "miou_percent", "fps", "device", "input", "method"]


def load_published(path: str | Path = PUBLISHED) -> pd.DataFrame:
    """Published numbers with their sources.

    Columns: dataset, protocol, model, revision, split, miou_percent, fps, device, input, source. Empty cells are
    unknown (NaN, or "" in `revision`), never zero.
    """
    frame = pd.read_csv(path)
    return frame.assign(revision=frame["revision"].fillna(""))


def published_tables() -> dict[str, pd.DataFrame]:
    """{dataset / protocol / input: network, split, mIoU %, FPS, device, source}, Cityscapes first."""
    out = {}
    published = load_published().sort_values("dataset", kind="stable", ascending=False)
    for key, rows in split_by_protocol(published).items():
        names = [network_name(row.model, row.revision) for row in rows.itertuples()]
        table = rows[["split", "device", "source"]].fillna("").reset_index(drop=True)
        table.insert(0, "network", names)
        table.insert(2, "mIoU %", [_as_stated(value) for value in rows["miou_percent"]])
        table.insert(3, "FPS", ["" if pd.isna(value) else f"{value:g}" for value in rows["fps"]])
        out[key] = table
    return out


def beside_published(measured: pd.DataFrame) -> pd.DataFrame:
    """Measured mean mIoU per network beside the published values, each protocol and source in a column of its own.

    measured: evaluation rows of one protocol with model, revision, split, miou. Columns: network, "measured here:
    <protocol>, <split>", and one per (published protocol, split, input) of the same dataset. Empty cells were not
    measured or not published. Different recipes of one network are not averaged: each has its mean and its number of
    runs (n).
    """
    protocol = one_protocol(measured)
    cells: dict[str, dict[str, str]] = {}
    for (split, model, revision), rows in measured.groupby(["split", "model", "revision"], sort=False):
        recipes = over_seeds(rows, ["miou"]).itertuples()
        text = "; ".join(f"{percent(each.miou, each.miou_std)} (n {each.runs})" for each in recipes)
        cells.setdefault(f"measured here: {protocol}, {split}", {})[network_name(model, revision)] = text
    published = load_published().query("dataset == @dataset", local_dict={"dataset": get_protocol(protocol).dataset})
    for row in published.itertuples():
        column = cells.setdefault(f"{row.protocol}, {row.split}, {row.input}", {})
        column[network_name(row.model, row.revision)] = _as_stated(row.miou_percent)
    return pd.DataFrame(cells).fillna("").rename_axis("network").reset_index()


def measured_points(evaluations: pd.DataFrame, speed: pd.DataFrame) -> pd.DataFrame:
    """Accuracy and speed measured here: one row per network and device, columns `POINT`; empty if nothing has both.

    - Speed rows that carry the mIoU of the timed callable (`speed_accuracy`), as they are.
    - Evaluations of whole splits in one view (mean over seeds of one recipe), with the fastest of the latest float32
      speed rows of the same network without switches, stage "network", one image of the protocol's size, on each
      device. Demo networks make no point.

    evaluations: of `collect.evaluation_rows`; speed: of `collect.collect_speed`. `method` says how the network was
    executed.
    """
    speed = latest_speed(speed)
    points = [pd.DataFrame(columns=POINT)]
    if "miou" in speed:
        rows = speed[speed["miou"].notna()].rename(columns={"network": "model"})
        method = rows["backend"] + " " + rows["precision"] + ", " + rows["stage"]
        points.append(rows.assign(miou_percent=100 * rows["miou"], method=method))
    if not evaluations.empty and {"model", "revision"} <= set(evaluations) and "stage" in speed:
        points.append(_joined(evaluations, speed))
    points = pd.concat([each for each in points if len(each)] or points)
    if len(points):
        points["model"] = [network_name(name) for name in points["model"]]
        points["dataset"] = [get_protocol(name).dataset for name in points["protocol"]]
        points["input"] = [f"{int(h)}x{int(w)}" for h, w in zip(points["height"], points["width"], strict=True)]
    return points[POINT].reset_index(drop=True)


def _joined(evaluations: pd.DataFrame, speed: pd.DataFrame) -> pd.DataFrame:
    """Mean mIoU of plain evaluations of whole splits, merged with the fastest plain speed row on each device."""
    plain = evaluations[(evaluations["images"] == evaluations["images_in_split"]) & ~is_demo(evaluations)]
    for column, value in {"switches": "none", "scales": "1", "flip": False, "window": "whole image"}.items():
        if column in plain:
            plain = plain[plain[column] == value]
    keys = ["protocol", "split", "model", "revision", *(c for c in ("study", "training_recipe") if c in plain)]
    scored = plain.groupby(keys, dropna=False)["miou"].mean().mul(100).rename("miou_percent").reset_index()
    scored[["height", "width"]] = [get_protocol(name).size for name in scored["protocol"]] or None
    timed = speed[(speed["stage"] == "network") & (speed["batch"] == 1) & (speed["precision"] == "float32")]
    timed = timed.rename(columns={"network": "model"}).sort_values(["device", "fps"], ascending=[True, False])
    same = ["model", "revision", "height", "width"]
    timed = timed.drop_duplicates([*same, "device"])[[*same, "device", "fps", "backend"]]
    points = scored.merge(timed, on=same)
    study = ", study " + points["study"].astype("string") if "study" in points else pd.Series("", index=points.index)
    return points.assign(method=points["backend"] + " float32, network" + study.fillna(""))


def _as_stated(value: float) -> str:
    """A percentage with the digits that its authors give, at least one: 71.0, 74.76."""
    return f"{value:.1f}" if round(value, 1) == value else f"{value:g}"
