"""Releases the weights of finished runs: float16 in s2fpn_lib/weights/, and the runs' records in results/.

    python scripts/release_weights.py s2fpn_lite-camvid trainval=RUN final=RUN --records results/camvid-lite \
        --offsets RUN@val 'RUN@trainval:drive=0006R0'

The weights of several runs are averaged; each run must have started from the one before it. `record_runs` adds the
runs to runs.csv and curves.csv. `--offsets` names runs of the same recipe and splits that they were not trained on:
the class offsets that raise mean IoU there are fitted, averaged, halved, and added to the head
(scripts/class_offsets.py). class-offsets.json records their effect, including the effect on the splits that they were
not fitted on. `--recorded-offsets` takes the offsets of an earlier release from that file. The script prints size and
checksum for the model card. It changes no run folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from class_offsets import add_offsets, fit_offsets, miou, sample_scores
from torch import Tensor

from s2fpn_lib.checkpoint import RELEASED, find_weights, load_model, read_metadata, save_weights
from s2fpn_lib.config import TrainConfig
from s2fpn_lib.data import open_dataset
from s2fpn_lib.runs import read_json, read_rows, write_json

OFFSETS = "class-offsets.json"
LARGEST_MB = 10  # size limit of a weight file in the repository
OFFSET_SHARE = 0.5  # applied share of the fitted offsets: the full offsets are too large for other splits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="name of the released weights in load_model")
    parser.add_argument("runs", nargs="+", help="NAME=FOLDER of finished runs; NAME is the run's name in the records")
    parser.add_argument("--records", type=Path, required=True, help="folder of runs.csv and curves.csv")
    offsets = parser.add_mutually_exclusive_group()
    offsets.add_argument("--offsets", nargs="+", metavar="RUN@SPLIT", help="where to fit class offsets")
    offsets.add_argument("--recorded-offsets", action="store_true", help=f"those in {OFFSETS}")
    given = parser.parse_args()
    runs = {name: Path(folder) for name, _, folder in (each.partition("=") for each in given.runs)}

    last = list(runs.values())[-1]
    model = load_model(last)
    model.load_state_dict(averaged([load_model(folder).state_dict() for folder in runs.values()]))
    metadata = read_metadata(find_weights(last))
    metadata.pop("config")  # save_weights writes the model's own
    if len(runs) > 1:
        metadata["averaged_over"] = [read_metadata(find_weights(folder))["recipe"] for folder in runs.values()]
    given.records.mkdir(parents=True, exist_ok=True)
    if given.offsets:
        write_json(given.records / OFFSETS, fitted_offsets(given.offsets))
    if given.offsets or given.recorded_offsets:
        found = read_json(given.records / OFFSETS)
        metadata["class_offsets"] = found["offsets"]
        dataset = open_dataset(metadata["dataset"], split=metadata["train_split"])
        add_offsets(model, torch.tensor(found["offsets"]), dataset)
    target = RELEASED / f"{given.name}.safetensors"
    draft = target.with_suffix(".draft")  # the released file stays until the new one has passed the size check
    save_weights(model, draft, metadata, half=True)
    data = draft.read_bytes()
    if len(data) > LARGEST_MB * 1e6:
        draft.unlink()
        raise SystemExit(f"{target} would have {len(data) / 1e6:.1f} MB; a released weight has at most {LARGEST_MB}")
    draft.replace(target)
    record_runs(runs, given.records)
    print(f"{target}: {len(data) / 1e6:.1f} MB, SHA-256 {hashlib.sha256(data).hexdigest()}")


def record_runs(runs: dict[str, Path], folder: Path) -> None:
    """Adds runs to the two tables in `folder`; rows of a run with the same name are replaced.

    runs.csv: one row per run, with the fields of config.json that differ from the defaults in any run (`config.*`) and
    the fields of result.json (`result.*`). curves.csv: one row per run and epoch, the rows of metrics.jsonl. Texts are
    written as they are, null as an empty cell, and every other value as JSON, so that no digit is lost.
    """
    table, curves = [], []
    for name, run in runs.items():
        config, result = read_json(run / "config.json"), read_json(run / "result.json")
        fields = {f"config.{key}": value for key, value in config.items()}
        table.append({"run": name, **fields, **{f"result.{key}": value for key, value in result.items()}})
        curves += [{"run": name, **row} for row in read_rows(run / "metrics.jsonl")]
    defaults = {f"config.{key}": _cell(value) for key, value in TrainConfig().recipe().items()}
    frame = _with_rows(folder / "runs.csv", table).fillna(defaults).fillna("")
    same = [column for column in frame if column in defaults and (frame[column] == defaults[column]).all()]
    columns = sorted(frame.columns.drop(same), key=lambda column: column.startswith("result."))  # a stable sort
    frame[columns].to_csv(folder / "runs.csv", index=False)
    _with_rows(folder / "curves.csv", curves).fillna("").to_csv(folder / "curves.csv", index=False)


def _with_rows(path: Path, rows: list[dict[str, Any]]) -> pd.DataFrame:
    """The table in `path` as text, with these rows instead of earlier rows of the same runs."""
    new = pd.DataFrame([{key: _cell(value) for key, value in row.items()} for row in rows], dtype=str)
    if not path.exists():
        return new
    old = pd.read_csv(path, dtype=str, keep_default_na=False)
    return pd.concat([old[~old["run"].isin(new["run"])], new], ignore_index=True)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)


def fitted_offsets(places: list[str]) -> dict[str, Any]:
    """The offsets to release, and one record per place (RUN@SPLIT).

    A record holds the offsets fitted on the split and three mean IoUs of the split: without offsets, with its own
    offsets, and with `OFFSET_SHARE` of the mean of the other places' offsets (None if there is no other place).
    """
    samples, fits = {}, {}
    for place in places:
        folder, _, split = place.rpartition("@")
        if split in samples:
            raise SystemExit(f"two runs are named for {split}: name one run per split")
        metadata = read_metadata(find_weights(folder))
        dataset = open_dataset(metadata["dataset"], split=split)
        seen = set(open_dataset(metadata["dataset"], split=metadata["train_split"]).names) & set(dataset.names)
        if seen:
            raise SystemExit(f"{folder} was trained on {len(seen)} images of {split}: fit offsets on other images")
        samples[split] = sample_scores(load_model(folder), dataset, progress=True)
        fits[split] = fit_offsets(*samples[split])
    records = {}
    for split, (scores, labels) in samples.items():
        others = [fit for other, fit in fits.items() if other != split]
        records[split] = {
            "fitted": fits[split].tolist(),
            "miou": miou(scores, labels),
            "miou_with_fitted": miou(scores, labels, fits[split]),
            "miou_with_others": miou(scores, labels, OFFSET_SHARE * torch.stack(others).mean(0)) if others else None,
        }
    offsets = OFFSET_SHARE * torch.stack(list(fits.values())).mean(0)
    return {"offsets": offsets.tolist(), "share": OFFSET_SHARE, "splits": records}


def averaged(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of every floating-point tensor; integer tensors (counters) are those of the last state."""
    return {
        name: torch.stack([state[name] for state in states]).mean(0) if value.is_floating_point() else value
        for name, value in states[-1].items()
    }


if __name__ == "__main__":
    main()
