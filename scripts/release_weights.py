"""Releases the weights of finished runs: float16 in s2fpn_lib/weights/, and the runs' records in results/.

    python scripts/release_weights.py s2fpn_lite-camvid trainval=RUN final=RUN --records results/camvid-lite

The weights of several runs are averaged; each run must have started from the one before it. `record_runs` adds the
runs to runs.csv and curves.csv. The script prints size and checksum for the model card. It changes no run folder.
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
from s2fpn_lib.runs import read_json, read_rows

TOTAL_MB = 40  # size limit of all released weights together, so that a clone stays small


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="name of the released weights in load_model")
    parser.add_argument("runs", nargs="+", help="NAME=FOLDER of finished runs; NAME is the run's name in the records")
    parser.add_argument("--records", type=Path, required=True, help="folder of runs.csv and curves.csv")
    given = parser.parse_args()
    runs = {name: Path(folder) for name, _, folder in (each.partition("=") for each in given.runs)}

    last = list(runs.values())[-1]
    model = load_model(last)
    model.load_state_dict(averaged([load_model(folder).state_dict() for folder in runs.values()]))
    metadata = read_metadata(find_weights(last))
    metadata["checkpoint_rule"] = read_json(last / "result.json").get("checkpoint_rule", "unstated")
    if len(runs) > 1:
        metadata["averaged_over"] = [read_metadata(find_weights(folder))["recipe"] for folder in runs.values()]
    given.records.mkdir(parents=True, exist_ok=True)
    target = RELEASED / f"{given.name}.safetensors"
    draft = target.with_suffix(".draft")  # the released file stays until the new one has passed the size check
    save_weights(model, draft, metadata, half=True)
    data = draft.read_bytes()
    total = len(data) + sum(path.stat().st_size for path in RELEASED.glob("*.safetensors") if path != target)
    if total > TOTAL_MB * 1e6:
        draft.unlink()
        raise SystemExit(f"with {target} all weights have {total / 1e6:.1f} MB together, over {TOTAL_MB}")
    draft.replace(target)
    record_runs(runs, given.records)
    print(f"{target}: {len(data) / 1e6:.1f} MB, SHA-256 {hashlib.sha256(data).hexdigest()}")


def record_runs(runs: dict[str, Path], folder: Path) -> None:
    """Adds runs to the two tables in `folder`; rows of a run with the same name are replaced.

    runs.csv: one row per run, with the fields of config.json that differ from the defaults in any run (`config.*`) and
    the fields of result.json except the definition of the protocol (`result.*`). curves.csv: one row per run and epoch,
    the rows of metrics.jsonl. Texts are written as they are, null as an empty cell, and every other value as JSON, so
    that no digit is lost.
    """
    table, curves = [], []
    for name, run in runs.items():
        config, result = read_json(run / "config.json"), read_json(run / "result.json")
        result.pop("protocol_definition", None)
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


def averaged(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of every floating-point tensor; integer tensors (counters) are those of the last state."""
    return {
        name: torch.stack([state[name] for state in states]).mean(0) if value.is_floating_point() else value
        for name, value in states[-1].items()
    }


if __name__ == "__main__":
    main()
