"""Each notebook runs once: golden ones under nbval, which compares their outputs, the others through papermill."""

from __future__ import annotations

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
    "crop": [64, 96],
    "batch_size": 2,
    "changes": {"train_split": "train:drive=park", "eval_images": 4},
}
CHEAP = {
    "10_train": TRAINING,
    "11_evaluate": {"limit": 2, "images": 2},
    "12_speed": {
        **{"models": ["s2fpn_lite"], "stages": ["network"], "sizes": [[64, 96]], "training_size": [64, 96]},
        **{"eval_fps_calls": 1, "loader_images": 2, "repeats": 1, "seconds": 0.02, "least": 1},
    },
    "20_ablation": {**TRAINING, "limit": 2},
    "21_search": {"trials": 2, "max_epochs": 1, "crop": [[32, 48]], "changes": TRAINING["changes"]},
    "30_attention": {"limit": 2},
}


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
    assert declared_types(path) == {name: each.annotation for name, each in declared.items()}


@named([path for path in NOTEBOOKS if path.stem not in GOLDEN])
@pytest.mark.slow
@pytest.mark.timeout(NOTEBOOK_TIMEOUT + 60)
def test_papermill_runs_it_without_data(path, tmp_path, monkeypatch):
    """In the order of their numbers and with shared results, as in `make run`."""
    monkeypatch.setenv("S2FPN_DATA", str(tmp_path))
    monkeypatch.delenv("MPLBACKEND")  # figures as pictures, as a notebook has them
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
    assert any("image/png" in output.get("data", {}) for output in outputs), "drawing functions return closed figures"


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
