"""Hyperparameter search: an Optuna study whose trials are training runs, for the notebook 21_search.

    space = search_space(lr=(3e-4, 1e-2), crop=[(64, 96), (96, 128)], aux_weight=(0.1, 1.0))
    Search("first", config, space, results=None, pruner="median", seed=0).run(trials=20, minutes=60)

The study is <results>/studies/search-<name>-<hash>/study.db, beside the run folder of each trial; the hash covers the
base recipe, the data, and the space. Optuna has no lock that tells a killed process's trial from one that still runs.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from s2fpn_lib.config import TrainConfig
from s2fpn_lib.runs import RunDirectory, config_hash, read_rows, results_root
from s2fpn_lib.state import TrainingDiverged, data_digests, open_splits
from s2fpn_lib.train import train

try:
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
    from optuna.trial import FrozenTrial, Trial, TrialState
except ImportError as error:
    raise ImportError("a search needs Optuna: pip install 's2fpn-workbench[search]'") from error

LOGARITHMIC = ("lr", "encoder_lr", "weight_decay")
Space = dict[str, BaseDistribution]  # of each field of TrainConfig that is searched


def search_space(**ranges: Sequence[Any]) -> Space:
    """The distribution of each field of TrainConfig that is searched; ValueError for a wrong number of values.

    ranges: for `crop` and `class_weights` the values to choose from; for others the lowest and highest one, or one.
    """
    space: Space = {}
    for field, values in ranges.items():
        if field in ("crop", "class_weights") and values:
            choices = ["x".join(map(str, each)) for each in values] if field == "crop" else values
            space[field] = CategoricalDistribution(choices)
        elif 1 <= len(values) <= 2:
            space[field] = FloatDistribution(values[0], values[-1], log=field in LOGARITHMIC)
        else:
            raise ValueError(f"{field} is {list(values)}; give its lowest and highest value")
    return space


class Search:
    """A study that maximizes the validation mIoU of runs: that of `TrainResult.summary`, by the checkpoint rule.

    config: what all trials have in common; the ratio of an encoder's own learning rate to the other one is kept.
    results: None: `results_root()`. pruner: "median" stops a trial whose validation mIoU is below the median of the
    earlier trials at that epoch, "hyperband" all but the best third at each of its rungs, "none" no trial. Raises
    ValueError for an unknown pruner, no validation split, several processes, or an invalid value in `space`.
    """

    def __init__(
        self, name: str, config: TrainConfig, space: Space, results: str | Path | None, pruner: str, seed: int
    ) -> None:
        if not config.val_split or config.processes > 1:
            raise ValueError("a search needs a val_split, and each trial is one process: devices=1, nodes=1")
        pruners = {"median": optuna.pruners.MedianPruner(n_startup_trials=3), "none": optuna.pruners.NopPruner()}
        pruners["hyperband"] = optuna.pruners.HyperbandPruner(min_resource=1, max_resource=config.epochs)
        if pruner not in pruners:
            raise ValueError(f"pruner is {pruner!r}; choose one of median, hyperband, none")
        self.config, self.space = config, space
        for field, values in space.items():
            for value in values.choices if isinstance(values, CategoricalDistribution) else (values.low, values.high):
                self.trial_config({field: value})  # raises an error for a value that TrainConfig refuses
        train_set, val_set = open_splits(config)
        if config.dataset == "auto":  # would mean something else once CamVid is installed
            self.config = config.replace(dataset=train_set.name)
        ranges = {field: optuna.distributions.distribution_to_json(each) for field, each in space.items()}
        identity = {"recipe": self.config.recipe(), "space": ranges, "data": data_digests(train_set, val_set)}
        self.folder = Path(results or results_root()).resolve() / "studies" / f"search-{name}-{config_hash(identity)}"
        self.folder.mkdir(parents=True, exist_ok=True)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        options = {"direction": "maximize", "pruner": pruners[pruner], "load_if_exists": True}
        self.study = optuna.create_study(storage=f"sqlite:///{self.folder / 'study.db'}", study_name=name, **options)
        # Every start draws on: the same seed again would draw the values of the first start
        self.study.sampler = optuna.samplers.TPESampler(seed=seed + len(self.study.trials))

    def run(self, trials: int, minutes: float = 0.0) -> None:
        """Runs trials until `trials` have ended, earlier calls included, or another one would not fit into the time.

        A trial that diverges, or needs more memory than there is, counts as failed. An interrupted one does not count:
        it is tried again with the same values, and its run continues. minutes: of this call; at least one trial runs;
        0: no limit. Raises RunLocked if another process works on this study.
        """
        with RunDirectory(self.folder).lock():
            for stale in self.study.get_trials(states=[TrialState.RUNNING]):
                self.study.enqueue_trial(stale.params)
                self.study.tell(stale.number, state=TrialState.FAIL)
            start, longest = time.monotonic(), 0.0
            while len(self._ended()) < trials:
                begun = time.monotonic()
                if minutes and longest and begun - start + longest > 60 * minutes:
                    print(f"{len(self._ended())} of {trials} trials; the time is over, the next start continues")
                    break
                self._run_trial(self.study.ask(self.space))
                longest = max(longest, time.monotonic() - begun)

    def _run_trial(self, trial: Trial) -> None:
        config = self.trial_config(trial.params)
        folder = self.folder / config_hash(config.recipe())
        trial.set_user_attr("folder", folder.name)
        values = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in trial.params.items())
        print(f"trial {trial.number}: {values}", flush=True)
        reported = set()

        def report(row: Mapping[str, Any], model: nn.Module) -> None:
            for each in read_rows(RunDirectory(folder).metrics):  # a continued run has rows of an earlier trial
                if each["val_miou"] is not None and each["epoch"] not in reported:
                    trial.report(each["val_miou"], each["epoch"])
                    reported.add(each["epoch"])
            if row["val_miou"] is not None and row["epoch"] < config.epochs and trial.should_prune():
                raise optuna.TrialPruned(f"mIoU {100 * row['val_miou']:.2f} % after epoch {row['epoch']}")

        miou, state = None, TrialState.COMPLETE
        try:
            miou = train(config, run_dir=folder, on_epoch=report, progress=False).summary["val_miou"]
            outcome = f": mIoU {100 * miou:.2f} %"
        except optuna.TrialPruned as stop:
            state, outcome = TrialState.PRUNED, f" pruned: {stop}"
        except (TrainingDiverged, torch.OutOfMemoryError) as error:
            trial.set_user_attr("error", f"{type(error).__name__}: {error}")
            state, outcome = TrialState.FAIL, f" failed: {error}"
        self.study.tell(trial, miou, state)
        print(f"trial {trial.number}{outcome}", flush=True)
        for state in folder.glob("*.pt"):  # most of the run's size; a trial that ended does not need its states
            state.unlink()

    def trial_config(self, values: Mapping[str, Any]) -> TrainConfig:
        """The configuration of the trial with these values."""
        changes = dict(values)
        if "crop" in changes:
            changes["crop"] = [int(part) for part in changes["crop"].split("x")]
        if "lr" in changes and "encoder_lr" not in changes:
            changes["encoder_lr"] = self.config.encoder_lr / self.config.lr * changes["lr"]
        return self.config.replace(**changes)

    def _ended(self) -> list[FrozenTrial]:
        """All trials that ended, except interrupted ones: failed ones without an error."""
        ended = [each for each in self.study.trials if each.state.is_finished()]
        return [each for each in ended if each.state != TrialState.FAIL or "error" in each.user_attrs]

    def table(self) -> pd.DataFrame:
        """One row per trial, the best first: state, mIoU (a pruned trial's last one), values, epochs, folder, error."""
        rows = {}
        for trial in self.study.trials:
            row = {"state": trial.state.name.lower(), "mIoU": trial.value, **trial.params, "epochs": trial.last_step}
            row["seconds"] = trial.duration.total_seconds() if trial.duration else None
            row |= {"folder": "", "error": "interrupted" if trial.state == TrialState.FAIL else ""}
            rows[trial.number] = row | trial.user_attrs  # folder and error
        frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("trial")
        return frame.sort_values(["state", "mIoU"], ascending=[True, False]) if rows else frame

    def best(self) -> TrainConfig:
        """The configuration of the best complete trial. Raises ValueError if there is none yet."""
        return self.trial_config(self.study.best_trial.params)
