"""Published numbers with their sources, and the accuracy and speed measured here beside them."""

from pathlib import Path

import pandas as pd

from s2fpn_lib.data import get_protocol
from s2fpn_lib.data.protocols import dataset_of
from s2fpn_lib.report.collect import METHOD, PLACE, latest_speed, with_remarks
from s2fpn_lib.report.tables import network_name, seen_words

PUBLISHED = Path(__file__).resolve().parent / "published.csv"
POINT = ["dataset", "protocol", "model", "revision", "split", "miou_percent", "fps", "device", "input", "method"]


def load_published() -> pd.DataFrame:
    """The rows of published.csv. Empty cells are unknown (NaN, or "" in `revision`), never zero."""
    return pd.read_csv(PUBLISHED).fillna({"revision": ""})


def measured_points(evaluations: pd.DataFrame, speed: pd.DataFrame) -> pd.DataFrame:
    """Accuracy and speed measured here: one row per network and device, columns `POINT`; empty if nothing has both.

    - Speed rows that carry the mIoU of the timed callable (`speed_accuracy`), as they are.
    - Evaluations of whole splits in one view (mean over seeds of one recipe), with the fastest of the latest float32
      speed rows, stage "network", one image of the protocol's size, on each device: of the same checkpoint, or for
      networks without switches of the same network. Speed rows with a remark make no point.
    """
    columns = [*PLACE, *METHOD, "fps", "miou", "protocol", "split", "images", "images_seen", "checkpoint_sha"]
    speed = with_remarks(latest_speed(speed))
    speed = speed[speed["remark"] == ""].reindex(columns=columns)  # rows may lack any
    speed = speed.astype(dict.fromkeys(("stage", "checkpoint_sha", *METHOD), "string"))
    speed = speed.rename(columns={"network": "model"})
    sizes = [f"{height:g}x{width:g}" for height, width in zip(speed["height"], speed["width"], strict=True)]
    speed["input"] = pd.array(sizes, dtype="string")
    speed["method"] = speed["backend"] + " " + speed["precision"] + ", " + speed["stage"] + _seen(speed)
    speed["miou_percent"] = 100 * speed["miou"]
    points = [speed.dropna(subset="miou")]
    if {"model", "revision"} <= set(evaluations):
        points.append(_joined(evaluations, speed))
    points = pd.concat(points, ignore_index=True).reindex(columns=POINT)
    points["model"] = points["model"].map(network_name)
    points["dataset"] = list(map(dataset_of, points["protocol"]))
    return points


def _joined(evaluations: pd.DataFrame, speed: pd.DataFrame) -> pd.DataFrame:
    """Mean mIoU of evaluations of whole splits, merged with the fastest plain speed row on each device."""
    whole = evaluations[evaluations["images"] == evaluations["images_in_split"]]
    for column, value in {"scales": "1", "flip": False, "window": "whole image"}.items():
        whole = whole[whole[column] == value] if column in whole else whole
    varying = [c for c in ("switches", "study", "training_recipe") if c in whole]
    keys = ["protocol", "split", "model", "revision", *varying]
    whole = whole.reindex(columns=whole.columns.union(["images_seen", "checkpoint_sha"]))
    columns = {"miou_percent": ("miou", "mean"), "images": ("images", "first")}
    columns |= {"images_seen": ("images_seen", "max"), "checkpoint_sha": ("checkpoint_sha", "last")}
    scored = whole.groupby(keys, dropna=False).agg(**columns).reset_index().astype({"checkpoint_sha": "string"})
    scored["miou_percent"] *= 100
    sizes = ["{}x{}".format(*get_protocol(name).size) for name in scored["protocol"]]
    scored["input"] = pd.array(sizes, dtype="string")
    timed = speed[(speed["stage"] == "network") & (speed["batch"] == 1) & (speed["precision"] == "float32")]
    timed = timed.sort_values(["device", "fps"], ascending=[True, False])
    plain = scored[scored["switches"] == "none"] if "switches" in scored else scored
    architectures = timed[timed["checkpoint_sha"].isna()]
    by_checkpoint, by_network = ["checkpoint_sha", "input"], ["model", "revision", "input"]
    found = [
        rows.dropna(subset=same).merge(times.drop_duplicates([*same, "device"])[[*same, "device", "fps", "method"]])
        for rows, times, same in ((scored, timed, by_checkpoint), (plain, architectures, by_network))
    ]
    points = pd.concat(found).drop_duplicates([*keys, "device"], ignore_index=True)  # the checkpoint's own time first
    points["method"] += _seen(points)
    if "study" in points:
        points["method"] += (", study " + points["study"].astype("string")).fillna("")
    return points


def _seen(rows: pd.DataFrame) -> pd.Series:
    """For each row, the remark that its weights were trained on scored images; empty if they were not."""
    remarks = [f", trained on {seen} images" if seen else "" for seen in seen_words(rows)]
    return pd.Series(remarks, index=rows.index, dtype="string")
