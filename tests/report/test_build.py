"""The report page of a results folder: empty, with evaluations, with studies and their failures."""

import json

import pandas as pd
import pytest

from s2fpn_lib.report import speed as report_speed
from s2fpn_lib.report.build import build_report
from s2fpn_lib.report.tables import PUBLISHED
from s2fpn_lib.workbench.provenance import DEMO_RUN
from tests.reporting import evaluation, training_run

CAMVID = "camvid-segnet-360x480"
NETWORK = {"model": "s2fpn18", "revision": "v1", "checkpoint": "run/last.safetensors", "git_sha": "abc"}


@pytest.fixture(autouse=True)
def _few_costs(monkeypatch):
    """Two networks are enough to count."""
    monkeypatch.setattr(report_speed, "COST_NETWORKS", ("s2fpn18",))


def test_an_empty_folder_gives_the_published_numbers(tmp_path):
    text = build_report(tmp_path).read_text()
    assert "Nothing has been measured" in text
    assert text.count("<img") == 2
    assert "<td>PIDNet-S</td>" in text
    assert ">74.76</td>" in text
    shown = [pd.read_csv(path) for path in (tmp_path / "tables").glob("published-*.csv")]
    assert sum(map(len, shown)) == len(pd.read_csv(PUBLISHED))
    cost = pd.read_csv(tmp_path / "tables" / "cost.csv").set_index("network")
    assert cost.loc["S2-FPN18 v2"].tolist() == [20.94, 34.56]


def test_scores_runs_and_exports(tmp_path):
    def record(name, shift, protocol=CAMVID, **changes):
        scored = evaluation(shift, images_in_split=9, protocol=protocol, **{**NETWORK, **changes})
        scored.save(tmp_path / name / "evaluation.json")
        return scored

    scored = [record("11_evaluate/a", 0, seed=0), record("11_evaluate/b", 1, seed=1)]
    record("11_evaluate/c", 0, protocol="roadscenes", seed=0)
    record("11_evaluate/d", 2, checkpoint=f"{DEMO_RUN}/best.safetensors")
    training_run(tmp_path / "train" / "run", val_miou=0.4321)
    text = build_report(tmp_path, title="Ours & theirs").read_text()
    scores = pd.read_csv(tmp_path / "tables" / f"scores-{CAMVID}.csv")
    both = pd.Series([each.confusion.miou() for each in scored])
    assert scores["mIoU %"].tolist() == [f"{100 * both.mean():.2f} ± {100 * both.std():.2f}"]
    assert scores["mIoU %"][0] in text
    assert scores["parameters M"].tolist() == [17.095]
    assert "Only 2 of the 9 images of val were scored in 2 evaluations" in text
    assert "Ours &amp; theirs" in text
    assert "43.21" in text
    assert DEMO_RUN not in text
    beside = pd.read_csv(tmp_path / "tables" / f"beside-{CAMVID}.csv").set_index("network")
    assert beside.loc["S2-FPN18 v1", "author README, test, 360x480"] == 70.1
    classes = pd.read_csv(tmp_path / "tables" / f"classes-{CAMVID}.csv").set_index("class")
    both = pd.Series([100 * each.confusion.iou()[3].item() for each in scored])
    assert classes.loc["Road", "S2-FPN18 v1"] == f"{both.mean():.1f} ± {both.std():.1f}"
    assert (tmp_path / "tables" / "scores-roadscenes.tex").exists()
    assert (tmp_path / "tables" / "scores-roadscenes.html").exists()


def test_a_study_is_paired_and_its_failures_are_listed(tmp_path):
    folder = tmp_path / "studies" / "ablation"
    for variant, switches, shift in (("full", "none", 1), ("no-crb", "crb=False", 2)):
        for seed in (0, 1):
            known = {**NETWORK, "model": "s2fpn_lite", "study": "ablation", "variant": variant, "switches": switches}
            scored = evaluation(shift + seed * (variant == "full"), **known, seed=seed)
            scored.save(folder / f"{variant}-{seed}" / "evaluation.json")
            training_run(folder / f"{variant}-{seed}" / "run", seed=seed)
    failure = {"notebook": "20_ablation.ipynb", "cell": "result = train(config)", "error": "MemoryError: <no> memory"}
    (folder / "no-apf-0").mkdir()
    (folder / "no-apf-0" / "failure.json").write_text(json.dumps(failure))
    text = build_report(tmp_path).read_text()
    table = pd.read_csv(tmp_path / "tables" / "study-ablation-roadscenes-val.csv").set_index("variant")
    first, second = (100 * evaluation(shift).confusion.miou() for shift in (1, 2))
    differences = pd.Series([second - first, 0.0])
    expected = f"{differences.mean():+.2f} ± {differences.std():.2f}"
    assert table.loc["no-crb", "difference to full, points"] == expected
    assert expected in text
    assert set(table["published"]) == {"–"}
    assert "could not be recovered" in text
    for shown in (
        "studies/ablation/no-apf-0",
        "20_ablation.ipynb",
        "result = train(config)",
        "MemoryError: &lt;no&gt;",
    ):
        assert shown in text
    assert not list((tmp_path / "tables").glob("runs-*")), "a study's runs are in its own section"


def test_a_report_made_again_says_the_same(tmp_path):
    row = {"network": "s2fpn_lite", "revision": "v1", "height": 240, "width": 320, "batch": 1, "backend": "eager"}
    row |= {"precision": "float32", "stage": "network", "fps": 10.0, "p50_ms": 100.0, "p90_ms": 110.0, "spread": 0.02}
    row |= {"device": "CPU A", "git_sha": "abc", "torch": "2", "time": "2026-01-01"}
    later = {**row, "fps": 12.5, "time": "2026-01-02"}
    (tmp_path / "12_speed").mkdir()
    (tmp_path / "12_speed" / "speed.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in (later, row)))
    evaluation(0, model="s2fpn_lite", revision="v1", seed=0).save(tmp_path / "a" / "evaluation.json")
    build_report(tmp_path)
    first = {path.name: path.read_bytes() for path in (tmp_path / "tables").iterdir() if path.suffix != ".parquet"}
    build_report(tmp_path)
    assert {path.name: path.read_bytes() for path in (tmp_path / "tables").iterdir() if path.name in first} == first
    speed = pd.read_csv(tmp_path / "tables" / "speed-240x320-batch-1-network-CPU-A.csv")
    assert speed["FPS"].tolist() == [12.5], "the last measurement of one thing"
    points = pd.read_csv(tmp_path / "tables" / "accuracy-speed-roadscenes.csv")
    assert points[["mIoU %", "FPS"]].to_numpy().tolist() == [[100.0, 12.5]]
