"""The tidy table: what a row says, its types, and that CSV and Parquet hold the same."""

import json
import math

import pandas as pd
import pytest

from s2fpn_lib.evaluate import CONVENTION
from s2fpn_lib.model import build_model
from s2fpn_lib.model.complexity import measure_complexity
from s2fpn_lib.report import collect
from tests.reporting import evaluation, training_run


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
    evaluation(1, **known).save(tmp_path / "11_evaluate" / "a" / "evaluation.json")
    evaluation(2, study="x", variant="full").save(tmp_path / "studies" / "x" / "b" / "evaluation.json")
    training_run(tmp_path / "train" / "run", seed=4, val_miou=0.25)
    return tmp_path


def test_a_row_says_how_it_came_about(root):
    table = collect.results_table(root).set_index("folder")
    assert list(table.index) == ["11_evaluate/a", "studies/x/b", "train/run"]
    row = table.loc["11_evaluate/a"]
    wanted = {"protocol": "roadscenes", "split": "val", "checkpoint_rule": "last", "seed": 3, "git_sha": "00123"}
    wanted |= {"config_hash": "12e4", "convention": CONVENTION, "device": "cpu", "switches": "ssam=False", "images": 2}
    assert {key: row[key] for key in wanted} == wanted
    assert row["miou_percent"] == pytest.approx(100 * evaluation(1).confusion.miou())
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
    assert road["iou_percent"] == pytest.approx(100 * evaluation(1).confusion.iou()[3].item())
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
    training_run(folder / "run", seed=1)
    (folder / "variant.json").write_text(json.dumps({"study": "x", "variant": "full"}))
    table = collect.results_table(root).set_index("folder")
    assert tuple(table.loc["studies/x/full-1/run", ["study", "variant"]]) == ("x", "full")
