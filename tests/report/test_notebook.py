"""90_report shows everything in a results folder, and the tables it exports hold the same numbers."""

import copy
import dataclasses
import html
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

from s2fpn_lib.data import get_protocol, register
from s2fpn_lib.report.comparison import PUBLISHED
from s2fpn_lib.runs import PROJECT
from s2fpn_lib.workbench.run_notebook import execute, export_html
from tests.reporting import evaluation, training_run

MARKUP = "<script>alert(1)</script>[a](javascript:alert(2))**b** $x^2$ '\"<img src=x onerror=alert(3)>"[:95]
CAMVID = "camvid-segnet-360x480"
NETWORK = {"model": "s2fpn18", "revision": "v1", "checkpoint": "run/last", "switches": "none", "git_sha": "abc"}


@pytest.fixture(scope="module")
def pages(root, tmp_path_factory) -> dict[Path, str]:
    """The pages of an empty results folder and of `root`, which one kernel makes one after the other."""
    empty = tmp_path_factory.mktemp("empty")
    (empty / "tables").mkdir()
    (empty / "tables" / "scores-of-a-removed-run.csv").write_text("old")
    notebook = nbformat.read(PROJECT / "notebooks" / "90_report.ipynb", as_version=4)
    length, cells = len(notebook.cells), []
    for folder in (empty, root):
        for cell in copy.deepcopy(notebook.cells):
            if "parameters" in cell.metadata.get("tags", []):
                cell.source = re.sub('(?<=results: str = )""', repr(str(folder)), cell.source)
                cell.source = re.sub('(?<=title: str = )"[^"]*"', '"A & B"', cell.source)
            cell.id = f"cell-{len(cells)}"
            cells.append(cell)
    notebook.cells = cells
    nbformat.write(notebook, empty / "both.ipynb")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MPLBACKEND", raising=False)  # figures as in a notebook
        execute(empty / "both.ipynb", empty / "executed.ipynb", {})
    executed, texts = nbformat.read(empty / "executed.ipynb", as_version=4), {}
    cells = executed.cells
    for folder, part in ((empty, cells[:length]), (root, cells[length:])):
        executed.cells = part
        nbformat.write(executed, folder / "90_report.ipynb")
        texts[folder] = export_html(folder / "90_report.ipynb", folder / "report.html").read_text()
    return texts


def table(root, name):
    return pd.read_csv(root / "tables" / f"{name}.csv", index_col=0)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Evaluations of two protocols, a study with a failure, a run, and speed rows."""
    root = tmp_path_factory.mktemp("results")
    changes = [(0, CAMVID, {"seed": 0}), (1, CAMVID, {"seed": 1}), (0, "roadscenes", {"seed": 0})]
    for i, (shift, protocol, known) in enumerate(changes):
        scored = evaluation(shift, images_in_split=9 if protocol == CAMVID else 2, protocol=protocol, **NETWORK | known)
        scored.save(root / "11_evaluate" / str(i) / "evaluation.json")
    for variant, switches, shift in (("full", "none", 1), ("no-crb", "crb=False", 2)):
        for seed in (0, 1):
            folder = root / "studies" / "ablation" / f"{variant}-{seed}"
            known = {**NETWORK, "model": "s2fpn_lite", "study": "ablation", "variant": variant, "switches": switches}
            evaluation(shift + seed * (variant == "full"), **known, seed=seed).save(folder / "evaluation.json")
            training_run(folder / "run", seed=seed)
    failure = {"notebook": "20_ablation.ipynb", "cell": "train(config)", "error": "MemoryError: <no> memory"}
    (root / "studies" / "ablation" / "no-apf-0").mkdir()
    (root / "studies" / "ablation" / "no-apf-0" / "failure.json").write_text(json.dumps(failure))
    training_run(root / "train" / "run", val_miou=0.4321)
    row = {"network": "s2fpn18", "revision": "v1", "height": 240, "width": 320, "batch": 1, "backend": "eager"}
    row |= {"precision": "float32", "stage": "network", "fps": 10.0, "p50_ms": 100.0, "p90_ms": 110.0, "spread": 0.02}
    row |= {"device": "CPU A", "git_sha": "abc", "torch": "2", "time": "2026-01-01"}
    later = {**row, "fps": 12.5, "time": "2026-01-02"}
    noisy = {**row, "backend": "compile", "fps": 99.0, "spread": 0.5}
    (root / "31_inspector").mkdir()
    (root / "31_inspector" / "view.html").write_text('<p>A "pixel"')
    (root / "12_speed").mkdir()
    (root / "12_speed" / "speed.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in (later, row, noisy)))
    add_hostile_files(root, row)
    return root


def add_hostile_files(root, row) -> None:
    """Texts with markup in everything that a table or a heading shows, and records that are no records."""
    names = tuple(f"{MARKUP}{number}" for number in range(11))
    own = dataclasses.replace(get_protocol("roadscenes"), name="evil-240x320-0000", dataset="evil", classes=names)
    texts = {
        "pretraining": MARKUP,
        "checkpoint": MARKUP,
        "model": MARKUP,
        "trained_on": MARKUP,
        "checkpoint_rule": MARKUP,
    }
    scored = evaluation(1, protocol=register(own).name, revision="v1", **texts)
    scored.names = [MARKUP, "$x$"]
    folder = root / "11_evaluate" / "<svg onload=alert(6)>"
    scored.save(folder / "evaluation.json")
    os.utime(folder / "evaluation.json", (0, 0))  # the newest one is that of the headline
    ids = np.zeros((8, 8), np.uint8)
    arrays = {f"image:{MARKUP}": np.zeros((3, 8, 8), np.uint8), f"label:{MARKUP}": ids, f"prediction:{MARKUP}": ids}
    np.savez(folder / "samples.npz", protocol=np.array(own.name), **arrays)
    damaged = {"evaluation.json": "[" * 100_000, "metrics.jsonl": "[1]\n", "samples.npz": "no archive"}
    damaged |= {"result.json": '{"protocol": "roadscenes", "val_miou": "high"}', "config.json": "{}"}
    (root / "train" / "evil").mkdir()
    for name, content in damaged.items():
        (root / "train" / "evil" / name).write_text(content)
    (root / "12_speed" / "speed-evil.jsonl").write_text(json.dumps({**row, "fps": [MARKUP]}) + "\n")
    (root / "studies" / "ablation" / "evil-0").mkdir()
    (root / "studies" / "ablation" / "evil-0" / "failure.json").write_text(json.dumps({"error": [MARKUP]}))
    (root / "studies" / "ablation" / "evil-1").mkdir()
    (root / "studies" / "ablation" / "evil-1" / "failure.json").write_text("{")


class Elements(HTMLParser):
    """(name, attributes) of every element of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


@pytest.mark.slow
def test_the_report_of_a_results_folder(root, pages):
    text = pages[root]
    scores = table(root, f"scores-{CAMVID}")
    mious = pd.Series([100 * evaluation(shift, protocol=CAMVID).confusion.miou() for shift in (0, 1)])
    assert scores["mean IoU %"].tolist() == [f"{mious.mean():.1f} ± {mious.std():.1f}"]
    assert scores["parameters M"].tolist() == [17.09]
    assert table(root, f"beside-{CAMVID}").loc["S2-FPN18 v1", "author README, test, 360x480"] == 70.1
    road = pd.Series([100 * evaluation(shift, protocol=CAMVID).confusion.iou()[3].item() for shift in (0, 1)])
    assert table(root, f"classes-{CAMVID}").loc["Road", "S2-FPN18 v1"] == f"{road.mean():.1f} ± {road.std():.1f}"
    first, second = (100 * evaluation(shift).confusion.miou() for shift in (1, 2))
    differences = pd.Series([second - first, 0.0])
    study = table(root, "study-ablation-RoadScenes-val")
    expected = f"{differences.mean():+.1f} ± {differences.std():.1f}"
    assert study.loc["without CRB", "difference to the full network, points"] == expected
    assert table(root, "speed-240x320-batch-1-network-CPU-A")["images per second"].tolist() == [12.5], (
        "the latest measurement"
    )
    points = table(root, "accuracy-speed-roadscenes")
    assert points.loc["S2-FPN18", ["mean IoU %", "images per second"]].tolist() == [100, 12.5]
    assert table(root, "runs-roadscenes")["validation mean IoU %"].tolist() == [43.2], "studies have their own section"
    shown = [pd.read_csv(path) for path in (root / "tables").glob("published-*.csv")]
    assert sum(map(len, shown)) == len(pd.read_csv(PUBLISHED))
    assert table(root, "cost").loc["S2-FPN18 v2"].tolist() == [20.94, 34.56]
    for words in (
        scores["mean IoU %"].iloc[0],
        expected,
        "43.2",
        "A &amp; B",
        "Only 2 of the 9 images of val",
        "74.76",
        "124.2",
    ):
        assert words in text
    for words in ("studies/ablation/no-apf-0", "20_ablation.ipynb", "train(config)", "MemoryError: &lt;no&gt; memory"):
        assert words in text
    first = text[: text.index('id="Inspector"')]
    for words in ("100.0<span", "12.5<span", "17.09<span", "on all 2 images of RoadScenes val, 240x320"):
        assert words in first, "the headline: the best whole evaluation of the newest protocol, its speed, and its size"
    frame = re.search(r"<iframe.*?</iframe>", text, re.DOTALL)[0]
    assert '<p>A "pixel"' in html.unescape(frame), "the newest page of 31_inspector"
    folded = re.search(r"<details><summary>1 rows with a remark</summary>.*?</table>", text, re.DOTALL)[0]
    assert "noisy: repeats differ by 50.0 %" in folded
    assert "Only 2 of the 9 images of val were scored in every evaluation below." in text
    committed = table(root, "study-ablation-lite-RoadScenes-val-committed-")
    assert committed.loc["without SSAM", "seeds lower"] == "3 of 3"
    assert "How these numbers came about" in text
    check_hostile_files(root, text)


def check_hostile_files(root, text) -> None:
    """Nothing in a file became an element, and what cannot be used is listed with the reason."""
    elements = Elements(text).found
    assert not {tag for tag, _ in elements} & {"script", "svg", "object", "embed", "form", "base", "link"}
    assert not [tag for tag, attributes in elements for name in attributes if name.startswith("on")]
    assert all(not (each.get("href") or "").startswith("javascript") for _, each in elements)
    assert all(each["src"].startswith("data:image/") for tag, each in elements if tag == "img")
    assert html.escape("<script>alert(1)</script>") in text, "shown as text"
    left_out = table(root, "left-out")["reason"]
    reasons = {str(Path(path).relative_to(root)): reason for path, reason in left_out.items()}
    assert reasons.keys() == {
        *(f"train/evil/{name}" for name in ("evaluation.json", "metrics.jsonl", "result.json")),
        "12_speed/speed-evil.jsonl",
    }
    assert "high" in reasons["train/evil/result.json"]
    assert table(root, "classes-evil-240x320-0000").index.tolist() == [*(f"{MARKUP}{i}" for i in range(11)), "mean IoU"]


@pytest.mark.slow
def test_an_empty_folder_gives_the_published_numbers(pages):
    empty, text = next(iter(pages.items()))
    assert "Nothing has been measured" in text
    assert text.count("<img") == 4, "two studies and two charts"
    assert "PIDNet-S" in text
    assert not (empty / "tables" / "scores-of-a-removed-run.csv").exists()
