"""A very small network for notebooks that have nothing else to show: trained in half a minute, and only once."""

from __future__ import annotations

import shutil
from pathlib import Path

from s2fpn_lib.provenance import STAND_IN
from s2fpn_lib.runs import results_root
from s2fpn_lib.train import ConfigChanged, TrainConfig, train


def stand_in(results: str | Path | None = None, dataset: str = "roadscenes") -> Path:
    """Folder of a network trained for an epoch on quarter-size crops of `dataset`, from scratch; says so on stdout.

    Kept in a folder named `STAND_IN` under `results` (None: `results_root()`), where no report takes it for a run.
    """
    folder = Path(results or results_root()) / "train" / dataset / STAND_IN
    if not (folder / "result.json").exists():
        print(f"Nothing trained found: training a small stand-in on {dataset} (1 epoch, quarter-size crops).")
    changes = {"epochs": 1, "eval_every": 1, "crop": (120, 160), "encoder_weights": "", "eval_images": 4}
    config = TrainConfig.preset("quick", dataset=dataset, amp="off", **changes)
    try:
        return train(config, run_dir=folder).run_dir
    except ConfigChanged:  # left by a version with another recipe, and worth nothing
        shutil.rmtree(folder)
        return train(config, run_dir=folder).run_dir
