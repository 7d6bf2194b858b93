"""Published numbers with their sources; a measured point is an accuracy and a speed of the same network and size."""

import pandas as pd
import pytest

from s2fpn_lib.report import tables
from s2fpn_lib.report.comparison import load_published, measured_points

SCORED = {
    "protocol": "camvid-segnet-360x480",
    "split": "val",
    "images": 101,
    "images_in_split": 101,
    "model": "s2fpn_lite",
    "revision": "v1",
    "switches": "none",
    "miou": 0.7,
}
TIMED = {
    "network": "s2fpn_lite",
    "revision": "v1",
    "height": 360,
    "width": 480,
    "batch": 1,
    "backend": "eager",
    "precision": "float32",
    "stage": "network",
    "fps": 40.0,
    "device": "CPU A",
}


def test_accuracy_meets_the_fastest_speed_on_each_device():
    scored = pd.DataFrame([SCORED, {**SCORED, "miou": 0.8}])
    compiled = {**TIMED, "backend": "compile", "fps": 50.0}
    disturbed = {**compiled, "fps": 90.0}  # measured before the last row
    timed = [TIMED, disturbed, compiled, {**TIMED, "device": "GPU B", "fps": 400.0}]
    points = measured_points(scored, pd.DataFrame(timed))
    assert points["fps"].tolist() == [50, 400]
    assert points["miou_percent"].tolist() == pytest.approx([75, 75])
    assert points.loc[0, ["dataset", "input", "method"]].tolist() == ["camvid", "360x480", "compile float32, network"]


@pytest.mark.parametrize(
    ("score", "speed"),
    [
        ({"images": 8}, {}),  # part of a split
        ({"switches": "ssam=False"}, {}),  # another network than the timed one
        ({"revision": "v2"}, {}),
        ({}, {"height": 512, "width": 1024}),
        ({}, {"batch": 8}),
        ({}, {"precision": "bf16"}),  # whose score is another
        ({}, {"stage": "end to end"}),
    ],
)
def test_other_measurements_make_no_point(score, speed):
    assert measured_points(pd.DataFrame([{**SCORED, **score}]), pd.DataFrame([{**TIMED, **speed}])).empty


def test_a_run_is_joined_with_the_speed_of_its_own_checkpoint():
    own = {**SCORED, "switches": "double_resolution=True", "checkpoint_sha": "abc"}
    timed = [{**TIMED, "checkpoint_sha": "abc", "fps": 9.0}, {**TIMED, "checkpoint_sha": "other", "fps": 60.0}, TIMED]
    assert measured_points(pd.DataFrame([own]), pd.DataFrame(timed))["fps"].tolist() == [9]
    plain = {**own, "switches": "none", "checkpoint_sha": "none of these"}
    assert measured_points(pd.DataFrame([plain]), pd.DataFrame(timed))["fps"].tolist() == [40]
    both = measured_points(pd.DataFrame([{**own, "switches": "none"}]), pd.DataFrame(timed))
    assert both["fps"].tolist() == [9], "one point, with the time of the checkpoint itself"


def test_speed_rows_with_a_remark_make_no_point():
    assert measured_points(pd.DataFrame([SCORED]), pd.DataFrame([{**TIMED, "cpu_share": 0.5}])).empty


def test_rows_with_their_own_score_are_points():
    row = {**TIMED, "miou": 0.6, "protocol": SCORED["protocol"], "split": "val", "precision": "int8"}
    row["stage"] = "end to end"
    points = measured_points(pd.DataFrame(), pd.DataFrame([row]))
    assert points[["miou_percent", "fps", "method"]].values.tolist() == [[60.0, 40.0, "eager int8, end to end"]]


def test_studies_are_points_of_their_own():
    scored = pd.DataFrame([{**SCORED, "study": None}, {**SCORED, "study": "sizes", "miou": 0.5}])
    points = measured_points(scored, pd.DataFrame([TIMED]))
    assert sorted(points["miou_percent"]) == pytest.approx([50, 70])
    assert set(points["method"]) == {"eager float32, network", "eager float32, network, study sizes"}


def row(seed, miou, **changes):
    fixed = {"model": "s2fpn18", "revision": "v1", "protocol": SCORED["protocol"], "split": "val"}
    return {**fixed, "seed": seed, "miou": miou, **changes}


def test_published_rows_of_different_input_sizes_are_different_protocols():
    rows = load_published()
    with pytest.raises(ValueError, match="camvid / 720x960 / 720x960"):
        tables.one_protocol(rows[rows["dataset"] == "camvid"])
    for part in tables.split_by_protocol(rows).values():
        tables.one_protocol(part)


def test_published_numbers_have_sources():
    rows = load_published()
    assert len(rows) == 27
    assert rows["source"].str.len().gt(3).all()
    found = rows.query("model == 'S2-FPN18' and revision == 'v2' and dataset == 'cityscapes'")
    assert found[["miou_percent", "fps"]].to_numpy().tolist() == [[76.7, 84.2]]
