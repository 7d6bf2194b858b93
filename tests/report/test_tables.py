"""Tables: protocols kept apart, repetitions, headings, provenance, and the exported files."""

import statistics

import pandas as pd
import pytest

from s2fpn_lib.data import get_protocol
from s2fpn_lib.evaluate import CONVENTION
from s2fpn_lib.report import tables
from s2fpn_lib.report.comparison import load_published


def row(seed=0, miou=0.5, **changes):
    return {
        "model": "s2fpn18",
        "revision": "v1",
        "protocol": "camvid-segnet-360x480",
        "split": "val",
        "seed": seed,
        "miou": miou,
        **changes,
    }


def test_two_protocols_never_share_a_column():
    mixed = pd.DataFrame([row(), row(1, protocol="roadscenes")])
    with pytest.raises(ValueError, match="camvid-segnet-360x480; roadscenes"):
        tables.score_table(mixed)
    assert list(tables.split_by_protocol(mixed)) == ["camvid-segnet-360x480", "roadscenes"]
    with pytest.raises(ValueError, match="1 rows name no protocol"):
        tables.over_seeds(pd.DataFrame([{"miou": 1}]))
    with pytest.raises(ValueError, match="1 rows name no protocol"):
        tables.over_seeds(pd.DataFrame([row(), row(protocol=None)]))


def test_mean_and_spread_over_seeds():
    frame = pd.DataFrame([row(0, 0.50), row(1, 0.53), row(2, 0.58), row(0, 0.7, model="s2fpn34")])
    table = tables.over_seeds(frame)
    assert table["runs"].tolist() == [3, 1]
    assert table["miou"].tolist() == pytest.approx([statistics.mean([0.5, 0.53, 0.58]), 0.7])
    assert table["miou_std"][0] == pytest.approx(statistics.stdev([0.5, 0.53, 0.58]))
    assert pd.isna(table["miou_std"][1])
    assert tables.score_table(frame)["mean IoU %"].tolist() == ["53.7 ± 4.0", "70.0"]
    with pytest.raises(ValueError, match=r"seed \[1\] occurs more than once"):
        tables.over_seeds(pd.DataFrame([row(1), row(1, 0.6)]))


def test_partial_evaluations_are_no_repetitions_of_whole_ones():
    frame = pd.DataFrame([row(0, images=101), row(1, images=8)])
    assert tables.over_seeds(frame)["runs"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("model", "revision", "name"),
    [
        ("s2fpn34m", "v2", "S2-FPN34M v2"),
        ("s2fpn_lite", "v1", "S2-FPN-Lite v1"),
        ("s2fpn_lite-camvid", "v2", "S2-FPN-Lite-camvid v2"),
        ("s2fpn34m-multi", "v1", "S2-FPN34M-multi v1"),  # the m of a name is no m of 34m
        ("S2-FPN34M", "", "S2-FPN34M"),
        ("PIDNet-S", "", "PIDNet-S"),
    ],
)
def test_network_names(model, revision, name):
    assert tables.network_name(model, revision) == name


def test_headings_are_words():
    scored = dict.fromkeys(tables.SCORES, 0.5)
    frame = pd.DataFrame([row(**scored, amp="bf16"), row(**scored, amp="float32")])
    assert list(tables.score_table(frame)) == [
        *("network", "precision", "runs", "mean IoU %", "mean IoU (published convention) %", "pixel accuracy %"),
        *("class accuracy %", "frequency-weighted IoU %", "boundary F-score %"),
    ]


def test_numbers_have_one_rounding():
    rows = {"network": ["a", None], "miou": [0.71234, None], "p50_ms": [1234.5, 0.012345], "fps": [5.8, 99.96]}
    rows |= {
        "parameters": [3_845_572, 17_094_999],
        "gmacs": [2.136, 27.809],
        "max_difference": [0.0, 2.44e-6],
        "spread": [0.0722, 0.3],
        "calls": [3, 12],
    }
    shown = tables.words(pd.DataFrame(rows, index=[4, 7]))
    assert shown.to_dict("list") == {
        "network": ["a", ""],
        "mean IoU %": ["71.2", ""],
        "median ms": ["1230", "0.0123"],
        "images per second": ["5.80", "100"],
        "parameters M": ["3.85", "17.09"],
        "GMACs": ["2.14", "27.81"],
        "max difference": ["0.00", "2.4e-06"],
        "spread %": ["7.2", "30.0"],
        "calls": [3, 12],
    }
    assert shown.index.tolist() == [4, 7]
    assert tables.percent(-0.0123, 0.0041, sign="+") == "-1.2 ± 0.4"


@pytest.mark.parametrize(
    ("protocol", "name"),
    [
        ("roadscenes", "RoadScenes"),
        ("camvid", "CamVid"),
        ("camvid-segnet-360x480", "CamVid (camvid-segnet-360x480)"),
        ("warehouse", "warehouse"),
    ],
)
def test_datasets_are_spelled_as_names(protocol, name):
    assert tables.protocol_name(protocol) == name


def test_a_run_says_on_how_many_images_it_was_validated():
    known = {"pretraining": "none", "seed": 0, "epochs": 8, "steps": 9, "seconds": 12.6, "checkpoint_rule": "best-val"}
    runs = pd.DataFrame([row(run="a", val_miou=0.72431, eval_images=40, **known), row(run="b", eval_images=0, **known)])
    table = tables.run_table(runs)
    assert table["validation images"].tolist() == ["40, evenly spaced", "all"]
    assert table["validation mean IoU %"].tolist() == ["72.4", ""]
    assert table["seconds"].tolist() == [13, 13]


def test_names_of_evaluations_are_unique():
    frame = pd.DataFrame([row(evaluation="a", checkpoint_sha="x"), row(evaluation="b", checkpoint_sha="y")])
    assert tables.evaluation_names(frame) == {"S2-FPN18 v1, seed 0, x": "a", "S2-FPN18 v1, seed 0, y": "b"}
    frame = pd.DataFrame([row(evaluation="a"), row(1, evaluation="b")])
    assert tables.evaluation_names(frame) == {"S2-FPN18 v1, seed 0": "a", "S2-FPN18 v1, seed 1": "b"}


def test_checkpoints_of_one_seed_are_no_repetitions():
    frame = pd.DataFrame([row(miou=0.5, checkpoint_sha="x"), row(miou=0.6, checkpoint_sha="y")])
    assert tables.score_table(frame)["checkpoint hash"].tolist() == ["x", "y"]


def test_provenance_names_what_all_rows_share():
    frame = pd.DataFrame([row(0, git_sha="0123456789abc"), row(1, git_sha="0123456789abc")])
    assert tables.provenance(frame) == (
        "protocol: CamVid (camvid-segnet-360x480); scored split: val; model: s2fpn18; revision: v1; seeds: 0, 1; "
        "code: 0123456789"
    )


def test_provenance_is_in_words():
    frame = pd.DataFrame([row(trained_on="camvid", variant="no-ssam", convention=CONVENTION, flip=False)])
    text = tables.provenance(frame, ["variant", "trained_on", "convention", "flip", "split"])
    assert text == (
        "variant: without SSAM; trained on: CamVid; classes in the mean: classes in labels or predictions, one never"
        " found is 0; flipped copies averaged: no; scored split: val; seeds: 0; code: unstated"
    )


@pytest.mark.parametrize(
    ("variant", "name"),
    [("full", "full"), ("no-ssam", "without SSAM"), ("no-deep-supervision", "without deep supervision")],
)
def test_variant_names(variant, name):
    assert tables.variant_name(variant) == name


def test_a_table_in_three_formats(tmp_path):
    table = pd.DataFrame({"network": ["S2-FPN18 <v1>"], "mean IoU %": ["70.1 ± 0.5"]})
    origin = tables.TableFolder(tmp_path / "folded").save("x", table, "Scores", "seeds: <0>").to_html()
    assert "<details><summary>How these numbers came about</summary>seeds: &lt;0&gt;</details></caption>" in origin
    assert r"\caption{Scores seeds: <0>}" in (tmp_path / "folded" / "x.tex").read_text()
    folder = tables.TableFolder(tmp_path)
    shown = folder.save("scores: camvid, val/360x480", table, "val_split & more").to_html()
    assert "<details>" not in shown
    name = "scores-camvid-val-360x480"
    assert sorted(path.name for path in tmp_path.glob("*.*")) == [f"{name}.{kind}" for kind in ("csv", "html", "tex")]
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / f"{name}.csv"), table, check_dtype=False)
    latex = (tmp_path / f"{name}.tex").read_text()
    for text in (r"70.1 $\pm$ 0.5", r"mean IoU \%", r"\caption{val\_split \& more}", r"\end{tabular}"):
        assert text in latex
    for text in (shown, (tmp_path / f"{name}.html").read_text()):
        assert "70.1 ± 0.5" in text
        assert "S2-FPN18 &lt;v1&gt;" in text
        assert "val_split &amp; more" in text


def test_tables_that_were_not_written_again_go(tmp_path):
    for name in ("gone.csv", "results.csv"):
        (tmp_path / name).write_text("old")
    folder = tables.TableFolder(tmp_path)
    folder.save("kept", pd.DataFrame({"a": [1]}), "")
    folder.remove_others()
    assert {path.stem for path in tmp_path.iterdir()} == {"kept", "results"}


def test_class_scores_of_networks_with_other_switches_have_their_own_columns():
    iou = [{f"iou_{name}": value for name in get_protocol(row()["protocol"]).classes} for value in (0.5, 0.25)]
    frame = pd.DataFrame([row(switches="none", **iou[0]), row(switches="crb=False", **iou[1])])
    table = tables.class_score_table(frame).set_index("class")
    assert table.loc["Sky"].to_dict() == {"S2-FPN18 v1, none": "50.0", "S2-FPN18 v1, crb=False": "25.0"}


def test_published_rows_of_different_input_sizes_are_different_protocols():
    rows = load_published()
    with pytest.raises(ValueError, match="camvid / 720x960 / 720x960"):
        tables.one_protocol(rows[rows["dataset"] == "camvid"])
    for part in tables.split_by_protocol(rows).values():
        tables.one_protocol(part)
