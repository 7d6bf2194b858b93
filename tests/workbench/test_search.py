"""The search: values from the runs themselves, pruning, failed and interrupted trials, another start."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest

from s2fpn_lib.runs import RunDirectory, RunLocked, append_row, read_json, read_rows
from s2fpn_lib.state import TrainingDiverged
from s2fpn_lib.train import TrainConfig
from s2fpn_lib.workbench import search as module
from s2fpn_lib.workbench.search import Search, search_space
from tests.loading import load_file

SMALL = {"dataset": "roadscenes", "train_split": "train:drive=park", "crop": [32, 48], "encoder_weights": ""}
SMALL |= {"epochs": 2, "eval_every": 1, "eval_images": 1, "batch_size": 40, "encoder_lr": 1e-4, "lr": 1e-3}
SPACE = {"lr": (1e-4, 1e-2), "crop": [(32, 48), (48, 64)], "aux_weight": (0.1, 1.0), "class_weights": [0.0, 1.12]}


def make(results, space=SPACE, **options) -> Search:
    changes = {name: options.pop(name) for name in list(options) if name not in ("pruner", "seed")}
    config = TrainConfig.preset("demo", **SMALL | changes)
    options = {"pruner": "median", "seed": 0} | options
    return Search("try", config, search_space(**space), results=results, **options)


def states(search) -> list[str]:
    return [trial.state.name for trial in search.study.trials]


@pytest.fixture
def scores(monkeypatch):
    """Replaces the training: run i validates with the i-th list of scores, an exception among them is raised."""
    script, runs = [], []

    def train(config, *, run_dir, on_epoch, progress):
        runs.append((config, run_dir))
        run_dir.mkdir(exist_ok=True)
        (run_dir / "last.pt").touch()
        done = len(read_rows(run_dir / "metrics.jsonl"))
        for epoch, score in enumerate(script[len(runs) - 1][done:], start=done + 1):
            if isinstance(score, BaseException):
                raise score
            row = {"epoch": epoch, "val_miou": score}
            append_row(run_dir / "metrics.jsonl", row)
            on_epoch(row, None)
        return SimpleNamespace(summary={"val_miou": score})

    monkeypatch.setattr(module, "train", train)
    return SimpleNamespace(script=script, runs=runs)


def test_a_trial_is_a_training_run_of_its_configuration(tmp_path):
    search = make(tmp_path)
    search.run(1)
    (trial,) = search.study.trials
    folder = search.folder / trial.user_attrs["folder"]
    assert trial.value == read_json(folder / "result.json")["val_miou"]
    rows = read_rows(folder / "metrics.jsonl")
    assert trial.intermediate_values == {row["epoch"]: row["val_miou"] for row in rows}
    recipe = read_json(folder / "config.json")
    values = trial.params
    assert (recipe["lr"], recipe["aux_weight"], recipe["class_weights"]) == tuple(
        values[name] for name in ("lr", "aux_weight", "class_weights")
    )
    assert "x".join(map(str, recipe["crop"])) == values["crop"]
    assert recipe["encoder_lr"] == pytest.approx(recipe["lr"] / 10), "the ratio of the base configuration"
    assert search.folder.parent == tmp_path.resolve() / "studies", "reports keep studies apart from other runs"
    assert not list(folder.glob("*.pt"))


def test_another_start_continues_with_new_values(tmp_path, scores):
    scores.script += [[0.1, 0.2], [0.1, 0.4], [0.1, 0.3], [0.1, 0.1]]
    make(tmp_path).run(2)
    search = make(tmp_path)
    search.run(4)
    search.run(4)  # complete: nothing to do
    assert len(scores.runs) == 4
    assert len({config.lr for config, _ in scores.runs}) == 4, "the sampler began anew"
    assert search.table()["mIoU"].tolist() == [0.4, 0.3, 0.2, 0.1]
    assert search.best() == scores.runs[1][0]
    assert (search.folder / "study.db").exists()


def test_a_trial_below_the_median_is_pruned_by_its_validation(tmp_path, scores):
    # median of the complete trials at epoch 1: 0.2 after three of them, 0.205 after four
    scores.script += [[0.1, 0.5], [0.2, 0.5], [0.3, 0.6], [0.19, 0.9], [0.21, 0.7], [0.206, 0.1]]
    search = make(tmp_path)
    search.run(6)
    assert states(search) == ["COMPLETE", "COMPLETE", "COMPLETE", "PRUNED", "COMPLETE", "COMPLETE"]
    table = search.table()
    assert table.loc[3, ["state", "mIoU", "epochs"]].tolist() == ["pruned", 0.19, 1]
    assert table.index[0] == 4
    assert list(scores.runs[3][1].glob("*.pt")) == []


def test_without_pruning_every_trial_ends(tmp_path, scores):
    scores.script += [[0.3, 0.3], [0.3, 0.3], [0.3, 0.3], [0.1, 0.1]]
    search = make(tmp_path, pruner="none")
    search.run(4)
    assert states(search) == ["COMPLETE"] * 4


def test_a_divergence_fails_its_trial_alone(tmp_path, scores):
    scores.script += [[0.1, 0.2], [TrainingDiverged("step 3: not finite")], [0.1, 0.3]]
    search = make(tmp_path)
    search.run(3)
    assert states(search) == ["COMPLETE", "FAIL", "COMPLETE"]
    assert search.table().loc[1, "error"] == "TrainingDiverged: step 3: not finite"
    assert len(scores.runs) == 3, "a failed trial is not tried again"


def test_a_killed_trial_is_repeated_and_its_run_continues(tmp_path, scores):
    scores.script += [[0.1, 0.2], [0.3, KeyboardInterrupt()], [0.3, 0.6], [0.1, 0.1]]
    first = make(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        first.run(3)
    assert states(first) == ["COMPLETE", "RUNNING"]
    search = make(tmp_path)
    search.run(3)
    assert states(search) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"], "three trials and the interrupted one"
    assert search.table().loc[1, "error"] == "interrupted"
    stale, repeated = search.study.trials[1:3]
    assert repeated.params == stale.params
    assert scores.runs[2] == scores.runs[1], "the run folder of the interrupted trial"
    assert repeated.intermediate_values == {1: 0.3, 2: 0.6}
    assert repeated.value == 0.6


def test_the_time_budget(tmp_path, scores, monkeypatch, capsys):
    clock = iter(range(0, 1000, 25))  # seconds; it is read four times per trial after the first reading
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    scores.script += [[0.1, 0.2]] * 9
    search = make(tmp_path)
    search.run(9, minutes=2)
    # a trial ends 25 s after it began; the next one begins 25 s later: 25-50, 75-100, and not 125-150
    assert len(scores.runs) == 2
    assert "2 of 9 trials; the time is over, the next start continues" in capsys.readouterr().out


def test_another_search_has_another_folder(tmp_path, monkeypatch):
    folders = {make(tmp_path).folder, make(tmp_path, SPACE | {"lr": (1e-4, 1e-3)}).folder}
    folders |= {make(tmp_path, **change).folder for change in ({"epochs": 3}, {"device": "cpu"}, {"pruner": "none"})}
    assert len(folders) == 3, "device and pruner change no score"
    monkeypatch.setattr(module, "data_digests", lambda *splits: {"train": "other"})
    assert make(tmp_path).folder not in folders, "other data"


def test_one_process_at_a_time(tmp_path):
    search = make(tmp_path)
    with RunDirectory(search.folder).lock(), pytest.raises(RunLocked):
        search.run(1)


@pytest.mark.parametrize(
    ("space", "options", "message"),
    [
        ({"lr": [1e-4, 1e-3, 1e-2]}, {}, "lr is .*; give its lowest and highest value"),
        ({"crop": []}, {}, "crop is"),
        ({"aux_weight": [-1.0, 1.0]}, {}, "aux_weight is -1.0; it must be 0 or more"),
        ({"lrate": [1e-4, 1e-3]}, {}, "no field 'lrate'"),
        ({}, {"pruner": "medium"}, "pruner is 'medium'; choose one of median, hyperband, none"),
        ({}, {"devices": 2}, "each trial is one process"),
        ({}, {"val_split": "", "checkpoint_rule": "last"}, "needs a val_split"),
    ],
)
def test_what_cannot_be_searched_is_an_error_at_once(tmp_path, space, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make(tmp_path, space or SPACE, **options)
    assert not list(tmp_path.rglob("study.db"))


def test_hyperband(tmp_path):
    assert isinstance(make(tmp_path, pruner="hyperband").study.pruner, optuna.pruners.HyperbandPruner)


def test_without_optuna(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r"a search needs Optuna: pip install 's2fpn-workbench\[search\]'"):
        load_file(Path(module.__file__))
