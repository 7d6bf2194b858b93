"""Releases the weights of finished runs: float16 in s2fpn_lib/weights/, and the runs' records in results/.

    python scripts/release_weights.py s2fpn_lite-camvid trainval=RUN final=RUN --records results/camvid-lite \
        --offsets RUN@val 'RUN@trainval:drive=0006R0'

The weights of several runs are averaged; each run must have started from the one before it. `record_runs` adds the
runs to runs.csv and curves.csv. `--offsets` names runs of the same recipe and splits that they were not trained on:
the class offsets that raise mean IoU there are fitted, averaged, halved, and added to the head. class-offsets.json
records their effect, including the effect on the splits that they were not fitted on. `--recorded-offsets` takes the
offsets of an earlier release from that file. The script prints size and checksum for the model card. It changes no
run folder.

The most likely class is the best prediction for pixel accuracy, but not for mean IoU (Nowozin, "Optimal Decisions from
Probabilistic Models: the Intersection-over-Union Case", CVPR 2014). For mean IoU it helps to predict a class that is
often missed at a lower score, and a class that spreads into its neighbors at a higher score. The simplest such rule is
one offset per class, fitted on images that the network was not trained on. It costs nothing at run time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from s2fpn_lib.checkpoint import RELEASED, find_weights, load_model, read_metadata, save_weights
from s2fpn_lib.config import TrainConfig
from s2fpn_lib.data import SegmentationDataset, evenly_spaced, open_dataset
from s2fpn_lib.metrics import ConfusionMatrix
from s2fpn_lib.model import S2FPN
from s2fpn_lib.model.modes import evaluation_mode
from s2fpn_lib.model.tta import at_size, predict_logits, resize_bilinear
from s2fpn_lib.progress import progress_bar
from s2fpn_lib.runs import read_json, read_rows, write_json

OFFSETS = "class-offsets.json"
LARGEST_MB = 10  # size limit of a weight file in the repository
OFFSET_SHARE = 0.5  # applied share of the fitted offsets: the full offsets are too large for other splits
GRID = torch.arange(-2, 2.01, 0.25)  # offsets to try, in units of the logits
SMALLEST_SHARE = 1e-3  # of the labeled pixels; a rarer class gives too little evidence and keeps offset 0
LEAST_GAIN = 1e-4  # of mean IoU; a smaller gain is chance
MOST_ROUNDS = 5


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
    metadata["checkpoint_rule"] = read_json(last / "result.json").get("checkpoint_rule", "unstated")
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
        samples[split] = sample_scores(load_model(folder), dataset)
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


def sample_scores(model: S2FPN, dataset: SegmentationDataset, *, every: int = 3) -> tuple[Tensor, Tensor]:
    """(N, K) float32 logits and (N,) int64 labels of the labeled pixels of every `every`-th row and column."""
    scores, labels = [], []
    with progress_bar(len(dataset), unit="image") as bar:
        for i in range(len(dataset)):
            image, label = dataset[i]
            logits = predict_logits(model, at_size(image, dataset.protocol.size)[None])
            logits = resize_bilinear(logits, label.shape)
            label = label[::every, ::every].long()
            kept = label != dataset.protocol.ignore_id
            scores.append(logits[0, :, ::every, ::every][:, kept].T.cpu())  # (K, h, w) -> (n, K)
            labels.append(label[kept])
            bar.update()
    return torch.cat(scores), torch.cat(labels)


def miou(scores: Tensor, labels: Tensor, offsets: Tensor | None = None) -> float:
    """Mean IoU of the classes with the largest score plus offset, without classes absent from labels and predictions.

    scores: (N, K). labels: (N,). offsets: (K,).
    """
    shifted = scores if offsets is None else scores + offsets
    return _miou(shifted.argmax(1), labels, scores.shape[1])


def fit_offsets(scores: Tensor, labels: Tensor) -> Tensor:
    """(K,) offsets for (N, K) scores that raise, and never lower, their mean IoU against (N,) labels.

    Coordinate ascent over `GRID`, one class at a time: the largest score of the other classes stays the same, so each
    candidate costs one comparison per pixel. It ends when a round changes nothing, or after `MOST_ROUNDS`.
    """
    classes = scores.shape[1]
    offsets = torch.zeros(classes)
    share = torch.bincount(labels, minlength=classes) / len(labels)
    best = miou(scores, labels)
    for _ in range(MOST_ROUNDS):
        before = offsets.clone()
        for c in torch.nonzero(share >= SMALLEST_SHARE).flatten().tolist():
            others = scores + offsets
            others[:, c] = -torch.inf
            rival, rival_class = others.max(1)
            for candidate in GRID[GRID.abs().argsort()]:  # prefers the smallest of equally good ones
                guess = torch.where(scores[:, c] + candidate > rival, c, rival_class)
                if (reached := _miou(guess, labels, classes)) > best + LEAST_GAIN:
                    best, offsets[c] = reached, candidate
        if torch.equal(offsets, before):
            break
    return offsets


def add_offsets(model: S2FPN, offsets: Tensor, dataset: SegmentationDataset, *, images: int = 8) -> None:
    """Raises the model's logits by (K,) offsets, in place and as closely as its head allows.

    The head is a 1x1 convolution without bias. Least squares finds the vector a with a . f = 1 for the head's inputs f
    at the pixels of a few images of `dataset`. Adding offsets a^T to the head's weights raises the logit of class c by
    offsets[c] times a . f. For s2fpn_lite-camvid, a . f is 1.00 ± 0.08 on other images.
    """
    features = []
    with torch.inference_mode(), evaluation_mode(model):
        for i in evenly_spaced(len(dataset), images):
            image = at_size(dataset[i][0], dataset.protocol.size)[None]
            last = model.pyramid(model.preprocess(image)).gfu[-1]  # (1, C, h, w), the input of the head
            features.append(last[0].flatten(1).T[::11].double().cpu())
    stacked = torch.cat(features)
    one = torch.linalg.lstsq(stacked, torch.ones(len(stacked), 1, dtype=torch.float64)).solution  # (C, 1)
    with torch.no_grad():
        model.head.weight += (offsets.double()[:, None] @ one.T)[:, :, None, None].to(model.head.weight)


def _miou(guess: Tensor, labels: Tensor, classes: int) -> float:
    confusion = ConfusionMatrix(classes)
    confusion.update(guess[None], labels[None])
    return confusion.miou()


if __name__ == "__main__":
    main()
