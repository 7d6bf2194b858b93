"""Own points join an accuracy with a speed of the same network at the same size, and nothing else."""

import pandas as pd
import pytest

from s2fpn_lib.report.measured_points import measured_points

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
    disturbed = {**compiled, "fps": 90.0}  # measured before, and not any more what this machine does
    timed = [TIMED, disturbed, compiled, {**TIMED, "device": "GPU B", "fps": 400.0}]
    points = measured_points(scored, pd.DataFrame(timed))
    assert points["fps"].tolist() == [50, 400]
    assert points["miou_percent"].tolist() == pytest.approx([75, 75])
    assert points.loc[0, ["dataset", "input", "way"]].tolist() == ["camvid", "360x480", "compile float32, network"]


@pytest.mark.parametrize(
    ("score", "speed"),
    [
        ({"images": 8}, {}),  # part of a split
        ({"switches": "ssam=False"}, {}),  # another network than the timed one
        ({"revision": "v2"}, {}),
        ({"checkpoint": "stand-in/best.safetensors"}, {}),
        ({}, {"height": 512, "width": 1024}),
        ({}, {"batch": 8}),
        ({}, {"precision": "bf16"}),  # whose score is another
        ({}, {"stage": "end to end"}),
    ],
)
def test_what_was_not_measured_of_one_thing_makes_no_point(score, speed):
    assert measured_points(pd.DataFrame([{**SCORED, **score}]), pd.DataFrame([{**TIMED, **speed}])).empty


def test_rows_with_their_own_score_are_points():
    row = {**TIMED, "miou": 0.6, "protocol": SCORED["protocol"], "split": "val", "precision": "int8"}
    row["stage"] = "end to end"
    points = measured_points(pd.DataFrame(), pd.DataFrame([row]))
    assert points[["miou_percent", "fps", "way"]].values.tolist() == [[60.0, 40.0, "eager int8, end to end"]]


def test_studies_are_points_of_their_own():
    scored = pd.DataFrame([{**SCORED, "study": None}, {**SCORED, "study": "sizes", "miou": 0.5}])
    points = measured_points(scored, pd.DataFrame([TIMED]))
    assert sorted(points["miou_percent"]) == pytest.approx([50, 70])
    assert set(points["way"]) == {"eager float32, network", "eager float32, network, study sizes"}
