"""Turns finished runs into a released weight: float16 in s2fpn_lib/weights/, the runs' records in results/.

    python scripts/release_weights.py s2fpn_lite-camvid trainval=RUN final=RUN --records results/camvid-lite

Of several runs, each of which began with the one before it, the weights are averaged. Prints size and checksum for the
model card. The weights of a run directory are never changed.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
from pathlib import Path

import torch
from torch import Tensor

from s2fpn_lib.checkpoint import RELEASED, find_weights, load_model, read_metadata, save_weights

RECORDS = ("config.json", "metrics.jsonl", "result.json")
LARGEST_MB = 10  # of a weight that is kept in the repository


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="what load_model will know the weight as")
    parser.add_argument(
        "runs", nargs="+", help="PREFIX=FOLDER of finished runs: the first part of their records' names"
    )
    parser.add_argument("--records", type=Path, required=True, help="folder for the runs' small files")
    given = parser.parse_args()
    runs = {prefix: Path(folder) for prefix, _, folder in (each.partition("=") for each in given.runs)}

    last = list(runs.values())[-1]
    model = load_model(last)
    model.load_state_dict(averaged([load_model(folder).state_dict() for folder in runs.values()]))
    metadata = read_metadata(find_weights(last))
    metadata.pop("config")  # save_weights writes the model's own
    if len(runs) > 1:
        metadata["averaged_over"] = [read_metadata(find_weights(folder))["recipe"] for folder in runs.values()]
    target = RELEASED / f"{given.name}.safetensors"
    save_weights(model, target, metadata, half=True)
    data = target.read_bytes()
    if len(data) > LARGEST_MB * 1e6:
        target.unlink()
        raise SystemExit(f"{target} would have {len(data) / 1e6:.1f} MB; a released weight has at most {LARGEST_MB}")
    given.records.mkdir(parents=True, exist_ok=True)
    for prefix, folder in runs.items():
        for record in RECORDS:
            shutil.copyfile(folder / record, given.records / f"{prefix}-{record}")
    print(f"{target}: {len(data) / 1e6:.1f} MB, SHA-256 {hashlib.sha256(data).hexdigest()}")


def averaged(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of every floating-point tensor; counters are the last state's."""
    return {
        name: torch.stack([state[name] for state in states]).mean(0) if value.is_floating_point() else value
        for name, value in states[-1].items()
    }


if __name__ == "__main__":
    main()
