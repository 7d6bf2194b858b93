"""Runs, evaluations, and speed rows of a results folder are found, and nothing else."""

import json

import pytest
import torch

from s2fpn_lib.evaluate import Evaluation
from s2fpn_lib.metrics import ConfusionMatrix, class_totals
from s2fpn_lib.report import collect


@pytest.fixture
def evaluation():
    confusion = ConfusionMatrix(11, 11)
    pred = torch.randint(0, 11, (4, 30, 30), generator=torch.Generator().manual_seed(0))
    each = confusion.update(pred, pred.roll(1, 1))
    return Evaluation(
        confusion,
        class_totals(each),
        torch.full((11,), 0.5, dtype=torch.float64),
        0.5,
        [0, 1, 2, 3],
        list("abcd"),
        {"protocol": "roadscenes", "split": "val"},
        provenance={"model": "s2fpn_lite", "seed": 3},
    )


def test_runs_are_collected_from_their_folders(tmp_path):
    for seed in (0, 1):
        folder = tmp_path / "train" / f"seed{seed}"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / "result.json").write_text(json.dumps({"model": "s2fpn18", "seed": seed}))
        (folder / "metrics.jsonl").write_text('{"epoch": 1, "loss": 2.0}\n{"epoch": 2, "lo')
    (tmp_path / "result.json").write_text('{"of": "something else"}')
    runs = collect.collect_runs(tmp_path)
    assert runs["run"].tolist() == ["train/seed0", "train/seed1"]
    assert runs["seed"].tolist() == [0, 1]
    assert collect.collect_curves(tmp_path)["train/seed1"] == [{"epoch": 1, "loss": 2.0}]
    assert collect.collect_runs(tmp_path / "train" / "none").empty


def test_evaluations_and_speed_rows_are_collected(tmp_path, evaluation):
    evaluation.save(tmp_path / "11_evaluate" / "evaluation.json")
    (tmp_path / "12_speed").mkdir()
    (tmp_path / "12_speed" / "speed.jsonl").write_text('{"fps": 12.5}\n')
    found = collect.collect_evaluations(tmp_path)
    frame = collect.evaluation_rows(found)
    assert frame.loc[0, ["evaluation", "model", "seed"]].tolist() == ["11_evaluate", "s2fpn_lite", 3]
    assert frame["miou"][0] == evaluation.confusion.miou()
    assert collect.collect_speed(tmp_path)["fps"].tolist() == [12.5]
