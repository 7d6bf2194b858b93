"""Turns finished runs into a released weight: float16 in s2fpn_lib/weights/, the runs' records in results/.

    python scripts/release_weights.py s2fpn_lite-camvid trainval=RUN final=RUN --records results/camvid-lite \
        --offsets RUN@val 'RUN@trainval:drive=0006R0'

Of several runs, each of which began with the one before it, the weights are averaged. `--offsets` names runs of the
same recipe with splits that they were not trained on: the offsets of the class logits that raise mean IoU there are
fitted, averaged, halved and put into the head (scripts/class_offsets.py); offsets.json records what they bring, also
to the splits that they were not fitted on. `--recorded-offsets` takes those of an earlier release from that file.
Prints size and checksum for the model card. No run directory is changed.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
from pathlib import Path
from typing import Any

import torch
from class_offsets import add_offsets, fit_offsets, miou, sample_scores
from torch import Tensor

from s2fpn_lib.checkpoint import RELEASED, find_weights, load_model, read_metadata, save_weights
from s2fpn_lib.data import open_dataset
from s2fpn_lib.runs import read_json, write_json

RECORDS = ("config.json", "metrics.jsonl", "result.json")
OFFSETS = "offsets.json"
LARGEST_MB = 10  # of a weight that is kept in the repository
OFFSET_SHARE = 0.5  # of the fitted offsets: on a split that they were not fitted on all of them are too much


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="what load_model will know the weight as")
    parser.add_argument(
        "runs", nargs="+", help="PREFIX=FOLDER of finished runs: the first part of their records' names"
    )
    parser.add_argument("--records", type=Path, required=True, help="folder for the runs' small files")
    offsets = parser.add_mutually_exclusive_group()
    offsets.add_argument("--offsets", nargs="+", metavar="RUN@SPLIT", help="where to fit class offsets")
    offsets.add_argument("--recorded-offsets", action="store_true", help="those in the records' offsets.json")
    given = parser.parse_args()
    runs = {prefix: Path(folder) for prefix, _, folder in (each.partition("=") for each in given.runs)}

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
    draft = target.with_suffix(".draft")  # what has been released stays until its successor has passed
    save_weights(model, draft, metadata, half=True)
    data = draft.read_bytes()
    if len(data) > LARGEST_MB * 1e6:
        draft.unlink()
        raise SystemExit(f"{target} would have {len(data) / 1e6:.1f} MB; a released weight has at most {LARGEST_MB}")
    draft.replace(target)
    for prefix, folder in runs.items():
        for record in RECORDS:
            shutil.copyfile(folder / record, given.records / f"{prefix}-{record}")
    print(f"{target}: {len(data) / 1e6:.1f} MB, SHA-256 {hashlib.sha256(data).hexdigest()}")


def fitted_offsets(places: list[str]) -> dict[str, Any]:
    """The offsets to release, and per place what was fitted there and its mean IoU without offsets, with its own, and
    with `OFFSET_SHARE` of the mean of the others' (None where there is no other)."""
    samples, fits = {}, {}
    for place in places:
        folder, _, split = place.rpartition("@")
        if split in samples:
            raise SystemExit(f"two runs are named for {split}: give one a split")
        metadata = read_metadata(find_weights(folder))
        dataset = open_dataset(metadata["dataset"], split=split)
        seen = set(open_dataset(metadata["dataset"], split=metadata["train_split"]).names) & set(dataset.names)
        if seen:
            raise SystemExit(f"{folder} was trained on {len(seen)} images of {split}: fit offsets on other ones")
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
    """The mean of every floating-point tensor; counters are the last state's."""
    return {
        name: torch.stack([state[name] for state in states]).mean(0) if value.is_floating_point() else value
        for name, value in states[-1].items()
    }


if __name__ == "__main__":
    main()
