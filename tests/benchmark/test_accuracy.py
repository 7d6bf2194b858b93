"""The timed callable is the scored one, and int8 is not calibrated on what it is scored on."""

import pytest

from s2fpn_lib.benchmark.inference import measure_speed_and_accuracy
from s2fpn_lib.checkpoint import load_model
from s2fpn_lib.data import open_dataset
from s2fpn_lib.evaluate import evaluate


def test_rows_hold_the_evaluations_score():
    model = load_model("s2fpn_lite-camvid")
    val, train = open_dataset("roadscenes", split="val"), open_dataset("roadscenes", split="train")
    quick = {"limit": 3, "repeats": 1, "seconds": 0.1}
    rows = list(measure_speed_and_accuracy(model, val, train, precisions=["float32", "bf16", "int8"], **quick))
    assert [(row["backend"], row["precision"]) for row in rows] == [("eager", "float32"), ("eager", "bf16")]
    exact, rounded = rows
    assert exact["miou"] == pytest.approx(evaluate(model, val, limit=3, progress=False).confusion.miou(), abs=1e-4)
    assert exact["changed"] < 1e-4 < rounded["changed"] < 0.05
    assert exact["protocol"] == "roadscenes"
    assert exact["fps"] == pytest.approx(1e3 / exact["p50_ms"], rel=1e-2)


def test_calibration_on_the_scored_images_is_refused():
    val = open_dataset("roadscenes", split="val")
    with pytest.raises(ValueError, match="share images"):
        next(measure_speed_and_accuracy(load_model("s2fpn_lite-camvid"), val, val))
