"""What a results folder holds is found, and nothing else; a remark on a speed row follows from its numbers.

The tidy table: what a row says, its types, and that CSV and Parquet hold the same.
"""

import json
import math

import pandas as pd
import pytest
import torch

from s2fpn_lib.evaluate import CONVENTION, Evaluation
from s2fpn_lib.metrics import ConfusionMatrix, class_totals
from s2fpn_lib.model import build_model
from s2fpn_lib.model.complexity import measure_complexity
from s2fpn_lib.report import collect
from s2fpn_lib.report.collect import with_remarks
from tests import reporting


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


def read(path):
    """The CSV file of a tidy table, with its types."""
    types = collect.CLASS_COLUMNS if path.stem == "per_class" else collect.COLUMNS
    return pd.read_csv(path, dtype=types)


@pytest.fixture
def root(tmp_path):
    """Two evaluations, one of them of a study and without a seed, and one training run."""
    known = {"model": "s2fpn_lite", "revision": "v1", "checkpoint": "run/last.safetensors", "recipe": "12e4"}
    known |= {
        "switches": "ssam=False",
        "seed": 3,
        "checkpoint_rule": "last",
        "git_sha": "00123",
        "trained_on": "camvid",
    }
    reporting.evaluation(1, **known).save(tmp_path / "11_evaluate" / "a" / "evaluation.json")
    reporting.evaluation(2, study="x", variant="full").save(tmp_path / "studies" / "x" / "b" / "evaluation.json")
    reporting.training_run(tmp_path / "train" / "run", seed=4, val_miou=0.25)
    return tmp_path


def test_a_row_says_how_it_came_about(root):
    table = collect.results_table(root).set_index("folder")
    assert list(table.index) == ["11_evaluate/a", "studies/x/b", "train/run"]
    row = table.loc["11_evaluate/a"]
    wanted = {"protocol": "roadscenes", "split": "val", "checkpoint_rule": "last", "seed": 3, "git_sha": "00123"}
    wanted |= {"config_hash": "12e4", "convention": CONVENTION, "device": "cpu", "switches": "ssam=False", "images": 2}
    assert {key: row[key] for key in wanted} == wanted
    assert row["miou_percent"] == pytest.approx(100 * reporting.evaluation(1).confusion.miou())
    assert pd.isna(row["study"])
    assert tuple(table.loc["studies/x/b", ["study", "variant"]]) == ("x", "full")
    assert pd.isna(table.loc["studies/x/b", "seed"])
    run = table.loc["train/run"]
    assert (run["measured_by"], run["miou_percent"], run["checkpoint"]) == ("training", 25.0, "run/best.safetensors")
    assert run["config_hash_without_seed"]


def test_csv_and_parquet_hold_the_same(root):
    written = collect.write_results(root)
    assert dict(written.dtypes.astype(str).str.lower()) == {k: v.lower() for k, v in collect.COLUMNS.items()}
    for name in ("results", "per_class"):
        csv, parquet = read(root / "tables" / f"{name}.csv"), pd.read_parquet(root / "tables" / f"{name}.parquet")
        assert len(csv)
        pd.testing.assert_frame_equal(csv, parquet)
    pd.testing.assert_frame_equal(read(root / "tables" / "results.csv"), written)


def test_an_empty_folder_gives_an_empty_table_of_the_same_types(tmp_path):
    written = collect.write_results(tmp_path)
    assert written.empty
    pd.testing.assert_frame_equal(read(tmp_path / "tables" / "results.csv"), written)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "tables" / "results.parquet"), written)


def test_the_table_is_made_afresh(root):
    (root / "tables").mkdir()
    (root / "tables" / "results.csv").write_text("edited by hand\n")
    (root / "11_evaluate" / "a" / "evaluation.json").unlink()
    collect.write_results(root)
    assert read(root / "tables" / "results.csv")["folder"].tolist() == [
        "studies/x/b",
        "train/run",
    ]


def test_classes_in_long_form(root):
    table = collect.class_table(root)
    assert len(table) == 2 * 11
    road = table[(table["folder"] == "11_evaluate/a") & (table["class"] == "Road")].iloc[0]
    assert road["iou_percent"] == pytest.approx(100 * reporting.evaluation(1).confusion.iou()[3].item())
    assert math.isclose(table["label_share_percent"].sum(), 200)


def test_cost_is_that_of_the_built_network():
    cost = collect.network_cost("s2fpn_lite", "v1", "crb=False strip_axis=width", 11, (64, 96))
    model = build_model("s2fpn_lite", num_classes=11, crb=False, strip_axis="width")
    assert cost == measure_complexity(model, (64, 96))


def test_a_damaged_record_is_named(root):
    (root / "train" / "run" / "result.json").write_text('{"torn')
    with pytest.raises(ValueError, match=r"result\.json is damaged"):
        collect.results_table(root)


def test_a_study_s_run_says_its_variant(root):
    folder = root / "studies" / "x" / "full-1"
    reporting.training_run(folder / "run", seed=1)
    (folder / "variant.json").write_text(json.dumps({"study": "x", "variant": "full"}))
    table = collect.results_table(root).set_index("folder")
    assert tuple(table.loc["studies/x/full-1/run", ["study", "variant"]]) == ("x", "full")
