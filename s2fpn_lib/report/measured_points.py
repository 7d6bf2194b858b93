"""Accuracy and speed measured here, as points beside the published ones."""

from __future__ import annotations

import pandas as pd

from s2fpn_lib.data import get_protocol
from s2fpn_lib.report.collect import latest_speed
from s2fpn_lib.workbench.provenance import DEMO_RUN

COLUMNS = ("dataset", "protocol", "split", "model", "revision", "miou_percent", "fps", "device", "input", "way")


def measured_points(evaluations: pd.DataFrame, speed: pd.DataFrame) -> pd.DataFrame:
    """One row a network and device, columns `COLUMNS`; empty where nothing has both numbers.

    - Speed rows that carry the mIoU of the timed callable (`speed_accuracy`), as they are.
    - Evaluations of whole splits in one view (mean over seeds of one recipe), with the fastest of the latest float32
      speed rows of the same network without switches, network stage, one image of the protocol's size, measured on any
      device: the point is drawn as that device's. Stand-ins make no point.

    evaluations: of `collect.evaluation_rows`; speed: of `collect.collect_speed`. `way` says how the network was run.
    """
    rows: list[dict] = []
    speed = latest_speed(speed)
    if "miou" in speed:
        rows += [_measured_together(row) for row in speed[speed["miou"].notna()].to_dict("records")]
    if not evaluations.empty and {"model", "revision"} <= set(evaluations) and "stage" in speed:
        rows += _joined(evaluations, speed)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _measured_together(row: dict) -> dict:
    return {
        **{key: row[key] for key in ("protocol", "split", "revision", "fps", "device")},
        "dataset": get_protocol(row["protocol"]).dataset,
        "model": row["network"],
        "miou_percent": 100 * row["miou"],
        "input": f"{int(row['height'])}x{int(row['width'])}",
        "way": f"{row['backend']} {row['precision']}, {row['stage']}",
    }


def _joined(evaluations: pd.DataFrame, speed: pd.DataFrame) -> list[dict]:
    plain = evaluations[(evaluations["images"] == evaluations["images_in_split"])]
    if "checkpoint" in plain:
        plain = plain[~plain["checkpoint"].astype(str).str.startswith(f"{DEMO_RUN}/")]
    for column, value in {"switches": "none", "scales": "1", "flip": False, "window": "whole image"}.items():
        if column in plain:
            plain = plain[plain[column] == value]
    timed = speed[(speed["stage"] == "network") & (speed["batch"] == 1) & (speed["precision"] == "float32")]
    rows = []
    keys = ["protocol", "split", "model", "revision", *(c for c in ("study", "training_recipe") if c in plain)]
    for (protocol, split, model, revision, *_), group in plain.groupby(keys, dropna=False):
        study = f", study {group['study'].iloc[0]}" if "study" in group and group["study"].notna().all() else ""
        height, width = get_protocol(protocol).size
        same = timed[(timed["network"] == model) & (timed["revision"] == revision)]
        same = same[(same["height"] == height) & (same["width"] == width)]
        for device, measured in same.groupby("device"):
            fastest = measured.loc[measured["fps"].idxmax()]
            rows.append(
                {
                    "dataset": get_protocol(protocol).dataset,
                    "protocol": protocol,
                    "split": split,
                    "model": model,
                    "revision": revision,
                    "miou_percent": 100 * group["miou"].mean(),
                    "fps": fastest["fps"],
                    "device": device,
                    "input": f"{height}x{width}",
                    "way": f"{fastest['backend']} float32, network{study}",
                }
            )
    return rows
