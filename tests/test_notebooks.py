"""Each notebook runs once: golden ones under nbval, which compares their outputs, the others through papermill."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest
from nbval.plugin import get_sanitize_patterns

from s2fpn_lib.workbench.parameters import declarations
from s2fpn_lib.workbench.pipeline import declared_types

PROJECT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((PROJECT / "notebooks").glob("*.ipynb"))
GOLDEN = {"02_model"}
SANITIZE = PROJECT / "tests" / "nbval_sanitize.cfg"
LONGEST_CELL = 40  # lines
NOTEBOOK_TIMEOUT = 600  # seconds, on a slow machine

# Parameters of the notebooks whose defaults take longer than half a minute; the others run with their defaults.
TRAINING = {
    "model": "s2fpn_lite",
    "max_epochs": 1,
    "crop": [32, 48],
    "batch_size": 4,
    "changes": {"train_split": "train:drive=park", "eval_images": 4},
}
CHEAP = {
    "01_data": {"splits": "val:drive=park train:drive=park"},
    "10_train": TRAINING,
    "11_evaluate": {"limit": 2, "images": 2, "pages": 1, "worst_classes": 1},
    "12_speed": {
        **{"models": ["s2fpn_lite"], "stages": ["network"], "sizes": [[64, 96]], "training_size": [64, 96]},
        **{"eval_fps_calls": 1, "loader_images": 2, "repeats": 1, "seconds": 0.02, "least": 1},
    },
    "20_ablation": {**TRAINING, "limit": 2, "images": 2},
    "21_search": {"trials": 2, "max_epochs": 1, "crop": [TRAINING["crop"]], "changes": TRAINING["changes"]},
    "30_attention": {"limit": 2, "groups": 2, "images": 1, "pixels": [[0.6, 0.2], [0.45, 0.5]]},
}


# Runs at the start of each kernel: a line of JSON about each figure that is shown or saved as PNG.
WATCHER = """
import functools, itertools, json, math, os
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg

def crowded(axis):
    labels = [label for label in axis.get_ticklabels() if label.get_visible() and label.get_text().strip()]
    for one, two in itertools.combinations(labels, 2):
        a, b = one.get_window_extent(), two.get_window_extent()
        turned = math.radians(one.get_rotation())
        if turned % (math.pi / 2):  # slanted lines of text are apart if their baselines are
            if math.hypot(b.x0 - a.x0, b.y0 - a.y0) * abs(math.sin(turned)) < one.get_fontsize():
                yield one.get_text(), two.get_text()
        elif min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1:  # pixels
            yield one.get_text(), two.get_text()

@functools.wraps(FigureCanvasAgg.print_png)
def watched(canvas, *arguments, **options):
    print_png(canvas, *arguments, **options)
    figure, pixels = canvas.figure, np.asarray(canvas.renderer.buffer_rgba())
    axes = [axes for axes in figure.axes if axes.get_visible() and axes.axison]
    found = {
        "title": [axes.get_title() for axes in figure.axes][:3],
        "empty": bool((pixels == pixels[0, 0]).all()),
        "crowded": [pair for each in axes for axis in (each.xaxis, each.yaxis) for pair in crowded(axis)],
    }
    with open(os.environ["FIGURES_LOG"], "a") as log:
        print(json.dumps(found), file=log)

print_png, FigureCanvasAgg.print_png = FigureCanvasAgg.print_png, watched
"""


@pytest.fixture
def figures(tmp_path, monkeypatch):
    """Watches the figures of the kernels that the test starts; returns what was found, one dict per figure."""
    startup = tmp_path / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "watch_figures.py").write_text(WATCHER)
    log = tmp_path / "figures.jsonl"
    log.touch()
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("FIGURES_LOG", str(log))
    monkeypatch.delenv("MPLBACKEND")  # figures as pictures, as a notebook has them
    return lambda: [json.loads(line) for line in log.read_text().splitlines()]


def check_figures(found: list[dict]) -> None:
    assert found, "drawing functions return closed figures: no figure was shown"
    for figure in found:
        assert not figure["empty"], figure
        assert not figure["crowded"], f"tick labels overlap: {figure}"


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def named(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)


@named(NOTEBOOKS)
def test_form(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    first = notebook.cells[0].source
    assert re.match(rf"# {path.stem.split('_')[0]} · \S", first)
    assert "?" in first, "the first cell states the question that the notebook answers"
    tags = {tag for cell in notebook.cells for tag in cell.metadata.get("tags", [])}
    assert tags <= {"parameters", *(["nbval-ignore-output"] if path.stem in GOLDEN else [])}, "a cell hides from nbval"
    cells = code_cells(notebook)
    for cell in cells:
        assert 0 < len(cell.source.splitlines()) <= LONGEST_CELL, cell.source[:200]
        assert path.stem in GOLDEN or not cell.outputs, f"clear the outputs of:\n{cell.source[:200]}"
    (index,) = (i for i, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", []))
    declared = declarations(cells[index].source)
    assert declared, "the cell tagged 'parameters' holds more than typed, commented literals"
    assert "checked_parameters()" in cells[index + 1].source
    # papermill reads the same names and types: no line has a second '='
    assert declared_types(path) == {name: annotation for name, (annotation, _, _) in declared.items()}


@named([path for path in NOTEBOOKS if path.stem not in GOLDEN])
@pytest.mark.slow
@pytest.mark.timeout(NOTEBOOK_TIMEOUT + 60)
def test_papermill_runs_it_without_data(path, tmp_path, monkeypatch, figures):
    """In the order of their numbers and with shared results, as in `make run`."""
    monkeypatch.setenv("S2FPN_DATA", str(tmp_path / "data"))
    executed = papermill.execute_notebook(
        path,
        tmp_path / path.name,
        parameters=CHEAP.get(path.stem, {}),
        kernel_name="python3",
        cwd=path.parent,
        progress_bar=False,
        execution_timeout=NOTEBOOK_TIMEOUT,
    )
    assert all(cell.execution_count for cell in code_cells(executed))
    outputs = [output for cell in code_cells(executed) for output in cell.outputs]
    data = [output.get("data", {}) for output in outputs]
    assert any("image/png" in each for each in data)
    texts = [each.get("text/plain", "") for each in data if "image/png" not in each]
    assert not [text for text in texts if re.match(r"<Figure size .*>", text)], "a figure's name instead of its picture"
    check_figures(figures())


def test_empty_and_crowded_figures_are_found(tmp_path, figures):
    start = "import matplotlib.pyplot as plt\nfig, ax = plt.subplots(figsize=(2, 2))\nplt.close()\n"
    codes = [
        "ax.axis('off')",
        *(f"ax.set_xticks(range(9), ['Bicyclist'] * 9, rotation={turn})" for turn in (0, 90, 30)),
    ]
    cells = [nbformat.v4.new_code_cell(f"{start}{code}\nfig") for code in codes]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "figures.ipynb")
    papermill.execute_notebook(
        tmp_path / "figures.ipynb", tmp_path / "out.ipynb", kernel_name="python3", progress_bar=False
    )
    found = [(figure["empty"], bool(figure["crowded"])) for figure in figures()]
    assert found == [(True, False), (False, True), (False, False), (False, True)]


def nbval(path: Path) -> subprocess.CompletedProcess:
    """`pytest --nbval` on one notebook, in the notebook's folder and without this project's settings."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", os.devnull, f"--rootdir={path.parent}"]
    command += ["-rf", "--nbval", f"--nbval-sanitize-with={SANITIZE}", f"--nbval-cell-timeout={NOTEBOOK_TIMEOUT}", path]
    return subprocess.run(command, cwd=path.parent, capture_output=True, text=True, timeout=NOTEBOOK_TIMEOUT)


@named([path for path in NOTEBOOKS if path.stem in GOLDEN])
@pytest.mark.slow
@pytest.mark.timeout(NOTEBOOK_TIMEOUT + 60)
def test_golden_outputs_are_reproduced(path, tmp_path, monkeypatch):
    monkeypatch.setenv("S2FPN_DATA", str(tmp_path))
    cells = code_cells(nbformat.read(path, as_version=4))
    compared = [cell for cell in cells if cell.outputs and "nbval-ignore-output" not in cell.metadata.get("tags", [])]
    assert len(compared) >= 3, "a golden notebook with hardly any output checks hardly anything"
    result = nbval(path)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]


def test_nbval_finds_a_failing_cell_and_a_changed_output(tmp_path):
    cells = [nbformat.v4.new_code_cell(code, execution_count=1) for code in ("1 + 1", "1 + 2", "1 / 0")]
    for cell in cells:
        cell.outputs = [nbformat.v4.new_output("execute_result", {"text/plain": "2"}, execution_count=1)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, tmp_path / "broken.ipynb")
    failed = re.findall(r"^FAILED .*::Cell (\d+)", nbval(tmp_path / "broken.ipynb").stdout, flags=re.MULTILINE)
    assert failed == ["1", "2"]


def sanitized(text: str) -> str:
    for regex, replacement in get_sanitize_patterns(SANITIZE.read_text()):
        text = re.sub(regex, replacement, text)
    return text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("epoch 3: 12.4 s", "epoch 3: DURATION"),
        ("took 35ms, then 2 minutes", "took DURATION, then DURATION"),
        ("2024-05-01T12:30:00+02:00 done", "TIME done"),
        ("<function f at 0x7f3a5c1b2e50>", "<function f at ADDRESS>"),
        ("saved /tmp/pytest-3/results/model.json", "saved PATH"),
        ("torch 2.9.0+cpu", "torch VERSION"),
        ("(1, 11, 360, 480), 17.10 M parameters, 27.81 GMACs", "(1, 11, 360, 480), 17.10 M parameters, 27.81 GMACs"),
        ("mIoU 0.701, strides 4/8/16/32", "mIoU 0.701, strides 4/8/16/32"),
        ("S2-FPN18 v1: 87.3 FPS, stride 32 slices", "S2-FPN18 v1: 87.3 FPS, stride 32 slices"),
        ("https://github.com/mohamedac29/S2-FPN", "https://github.com/mohamedac29/S2-FPN"),
    ],
)
def test_sanitizer_hides_what_varies_and_nothing_else(text, expected):
    assert sanitized(text) == expected
