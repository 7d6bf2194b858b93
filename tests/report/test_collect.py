"""What a results folder holds is found, and nothing else; a remark on a speed row follows from its numbers."""

import json

import pandas as pd
import pytest
import torch

from s2fpn_lib.evaluate import Evaluation
from s2fpn_lib.metrics import ConfusionMatrix, class_totals
from s2fpn_lib.report import collect
from s2fpn_lib.report.collect import with_remarks


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


ROW = {
    **{"device": "CPU A", "height": 96, "width": 128, "batch": 1, "network": "s2fpn_lite", "revision": "v1"},
    **{"precision": "float32", "spread": 0.02, "cpu_share": 0.99, "fps": 10.0},
}


def row(stage, backend, ms, ratio=None, **changes):
    return {**ROW, "stage": stage, "backend": backend, "p50_ms": ms, "ratio": ratio, **changes}


def remarks(*rows):
    return with_remarks(pd.DataFrame(rows))["remark"].tolist()


@pytest.mark.parametrize(
    ("change", "remark"),
    [
        ({}, ""),
        ({"spread": 0.31}, "noisy: repeats differ by 31.0 %"),
        ({"cpu_share": 0.5}, "busy machine: 50.0 % of its cores"),
        ({"spread": 0.31, "cpu_share": 0.5}, "noisy: repeats differ by 31.0 %; busy machine: 50.0 % of its cores"),
        ({"spread": None, "cpu_share": None}, ""),  # of an earlier version
    ],
)
def test_a_row_says_why_its_time_means_little(change, remark):
    assert remarks(row("network", "eager", 20.0, **change)) == [remark]


def test_end_to_end_is_not_faster_than_the_network_it_contains():
    """The two rows of results/speed with the times 115.85 ms and 100.20 ms."""
    network, whole = row("network", "eager", 115.851, batch=4), row("end to end", "eager", 100.195, batch=4)
    assert remarks(network, whole) == ["", "faster than its network"]
    assert remarks(whole, network) == ["faster than its network", ""]
    others = {"batch": 1}, {"backend": "compile"}, {"precision": "bf16"}, {"device": "CPU B"}
    assert remarks(*({**network, **other} for other in others), whole) == [""] * 5


def test_rows_with_a_remark_have_no_ratio():
    network = [row("network", "published", 80.0, 1.0), row("network", "eager", 20.0, 4.0, spread=0.5)]
    whole = [row("end to end", "published", 90.0, 1.0, cpu_share=0.3), row("end to end", "eager", 30.0, 3.0)]
    ratios = with_remarks(pd.DataFrame(network + whole))["ratio"]
    assert ratios.isna().tolist() == [False, True, True, True]  # the last: compared with a row that has a remark
    assert ratios[0] == 1


def test_other_benchmarks_have_remarks_too():
    steps = pd.DataFrame(
        [{"way": "published", "spread": 0.4, "ratio": 1.0}, {"way": "modern", "spread": 0, "ratio": 3.0}]
    )
    found = with_remarks(steps)
    assert found["remark"].tolist() == ["noisy: repeats differ by 40.0 %", ""]
    assert found["ratio"].isna().all()
