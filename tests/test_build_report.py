"""The report page of a results folder: empty, and with an evaluation in it."""

import json

import pandas as pd
import torch

from s2fpn_lib.build_report import build_report
from s2fpn_lib.evaluate import Evaluation
from s2fpn_lib.metrics import ConfusionMatrix, class_totals
from s2fpn_lib.provenance import STAND_IN


def record(root, name, shift, *, protocol="camvid-segnet-360x480", checkpoint="run/last.safetensors", seed=0):
    confusion = ConfusionMatrix(11, 11)
    label = torch.arange(11, dtype=torch.uint8).repeat_interleave(5).repeat(2, 10, 1)  # (2, 10, 55)
    each = confusion.update(label.roll(shift, 2), label)
    evaluation = Evaluation(
        confusion,
        class_totals(each),
        torch.full((11,), 0.25, dtype=torch.float64),
        0.25,
        [0, 1],
        ["a", "b"],
        {"protocol": protocol, "split": "val", "images": 2, "images_in_split": 9},
        provenance={"model": "s2fpn18", "revision": "v1", "seed": seed, "checkpoint": checkpoint, "git_sha": "abc"},
    )
    evaluation.save(root / name / "evaluation.json")
    return evaluation


def test_an_empty_folder_gives_the_published_numbers(tmp_path):
    text = build_report(tmp_path).read_text()
    assert "Nothing has been measured" in text
    assert text.count("<img") == 2
    assert "<td>PIDNet-S</td>" in text
    assert ">74.76</td>" in text


def test_scores_runs_and_exports(tmp_path):
    first = record(tmp_path, "11_evaluate/a", 0, seed=0)
    second = record(tmp_path, "11_evaluate/b", 1, seed=1)
    record(tmp_path, "11_evaluate/c", 0, protocol="roadscenes")
    record(tmp_path, "11_evaluate/d", 2, checkpoint=f"{STAND_IN}/best.safetensors")
    run = tmp_path / "train" / "run"
    run.mkdir(parents=True)
    (run / "config.json").write_text("{}")
    (run / "metrics.jsonl").write_text('{"epoch": 1, "loss": 2.0, "val_miou": 0.4}\n')
    result = {"protocol": "roadscenes", "model": "s2fpn18", "revision": "v1", "seed": 0, "val_miou": 0.4321}
    (run / "result.json").write_text(json.dumps(result))
    text = build_report(tmp_path, title="Ours & theirs").read_text()
    scores = pd.read_csv(tmp_path / "tables" / "scores-camvid-segnet-360x480.csv")
    both = pd.Series([first.confusion.miou(), second.confusion.miou()])
    assert scores["mIoU %"].tolist() == [f"{100 * both.mean():.2f} ± {100 * both.std():.2f}"]
    assert scores["mIoU %"][0] in text
    assert "Only 2 of the 9 images of val were scored" in text
    assert "Ours &amp; theirs" in text
    assert "43.21" in text
    assert STAND_IN not in text
    beside = pd.read_csv(tmp_path / "tables" / "beside-camvid-segnet-360x480.csv").set_index("network")
    assert beside.loc["S2-FPN18 v1", "author README, test, 360x480"] == 70.1
    assert (tmp_path / "tables" / "scores-roadscenes.tex").exists()
