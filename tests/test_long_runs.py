"""Long runs keep nothing per step: the same tensors and open files after a few steps and after many.

scripts/long_runs.py measures the memory of runs of full length; its judgement is checked here.
"""

from __future__ import annotations

import contextlib
import gc
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from s2fpn_lib import train as train_module
from s2fpn_lib.data.roadscenes.dataset import RoadScenes
from s2fpn_lib.evaluate import evaluate
from s2fpn_lib.inspector import widget
from s2fpn_lib.inspector.state import NamedModel, Picture
from s2fpn_lib.runs import PROJECT
from s2fpn_lib.workbench import predict as predict_module
from tests.inspecting import PROTOCOL, network
from tests.loading import load_file
from tests.test_train import few_scenes_and_one_commit, tiny

SIZE = (64, 96)


@pytest.fixture(scope="module")
def script():
    return load_file(PROJECT / "scripts" / "long_runs.py")


class Counts:
    """Live tensors, open files, and figures of pyplot after each of the chosen steps."""

    def __init__(self, *steps: int) -> None:
        self.found: dict[int, tuple[int, int, int]] = {}
        self.chosen, self.step = steps, 0

    def __call__(self, *_) -> None:
        self.step += 1
        if self.step in self.chosen:
            gc.collect()
            tensors = sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())
            self.found[self.step] = tensors, len(list(Path("/proc/self/fd").iterdir())), len(plt.get_fignums())


def test_training_keeps_no_tensor_and_no_file_per_step(tmp_path, monkeypatch):
    counts, step = Counts(10, 20), train_module.train_step
    monkeypatch.setattr(train_module, "train_step", lambda *arguments: (step(*arguments), counts())[0])
    scenes, commit = few_scenes_and_one_commit()
    with scenes, commit:
        train_module.train(tiny(epochs=4, eval_every=2), run_dir=tmp_path, progress=False)
    assert counts.found[20] == counts.found[10]


def test_evaluation_keeps_no_tensor_and_no_file_per_image():
    counts = Counts(2, 8)
    evaluate(network(), RoadScenes("val", SIZE, count=8), batch_size=1, progress=False, observer=counts)
    assert counts.found[8] == counts.found[2]


def test_prediction_keeps_no_tensor_no_file_and_no_figure_per_picture(tmp_path, monkeypatch):
    pictures, counts = tmp_path / "pictures", Counts(3, 12)
    pictures.mkdir()
    for index in range(12):
        Image.fromarray(np.full((*SIZE, 3), index, np.uint8)).save(pictures / f"{index}.png")

    class Bar(contextlib.ExitStack):
        update = staticmethod(counts)

    monkeypatch.setattr(predict_module, "progress_bar", lambda *_, **__: Bar())
    predict_module.predict(network(), pictures, tmp_path / "out", PROTOCOL, size="own")
    assert counts.found[12] == counts.found[3]


def test_the_inspector_keeps_only_the_open_image(tmp_path):
    dataset, counts = RoadScenes("val", SIZE, count=3), Counts(3, 12)
    picture = Picture.of_dataset(dataset, 0, "own", PROTOCOL)
    inspector = widget.Inspector([NamedModel("x", network())], dataset, picture, PROTOCOL, size="own", results=tmp_path)
    for step in range(12):
        inspector._handle_custom_msg({"do": "index", "index": step % 3}, [])
        if step in (1, 8):  # matplotlib keeps the font files of its first figure open
            inspector._handle_custom_msg({"do": "save"}, [])
        counts()
    assert len(list(tmp_path.glob("*.png"))) == 2
    assert counts.found[12] == counts.found[3]


def test_growth_of_a_line_and_of_a_run_that_fills_its_buffers(script):
    steps = list(range(20, 2001, 20))
    mb, percent, slope = script.growth(steps, [100 + step / 100 for step in steps])
    # medians of the values at steps 400 to 600 and 1,800 to 2,000
    assert (mb, percent, slope) == pytest.approx((14.0, 100 * 14 / 105, 1.0))
    filled = [100 + min(step, 400) for step in steps]
    assert script.growth(steps, filled) == pytest.approx((0, 0, 0), abs=1e-9)


@pytest.mark.parametrize(
    ("start", "per_step", "flat"),
    [(500, 0.0, True), (500, 6 / 1024, True), (500, 12 / 1024, False), (2000, 12 / 1024, True)],
)
def test_a_part_may_grow_by_the_larger_limit(script, start, per_step, flat):
    """12 KB per step are 16 MB from step 500 to 1,900: too much of 500 MB, and less than 3 % of 2,000 MB."""
    rows = [{"step": str(n), "mb": str(start + n * per_step), "dom_nodes": ""} for n in range(20, 2001, 20)]
    line, found = script.judge("training", [{**row, "listeners": ""} for row in rows])
    assert found is flat
    assert line.endswith("flat" if flat else "GROWS")


def test_nodes_that_are_never_removed_are_a_leak(script):
    rows = [{"step": str(n), "mb": "3", "dom_nodes": str(500 + n), "listeners": "80"} for n in range(20, 501, 20)]
    line, flat = script.judge("inspector-page", rows)
    assert not flat
    assert "1000 dom nodes (+360), 80 listeners (+0)" in line


def test_memory_counts_children_and_no_pages_of_files(script, tmp_path):
    file = tmp_path / "mapped"
    file.write_bytes(bytes(64 << 20))
    before = script.memory_mb()
    mapped = np.memmap(file, mode="r")
    assert mapped.sum() == 0  # every page is resident now
    assert script.memory_mb() - before < 10
    code = "filled = bytearray(b'x') * (64 << 20); print('ready', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        assert 60 < script.memory_mb() - before < 90
        child.communicate(b"\n")
