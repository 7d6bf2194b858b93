"""Every notebook: its form, Run All with its defaults, papermill with overrides, and golden outputs compared."""

from __future__ import annotations

import ast
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

PROJECT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((PROJECT / "notebooks").glob("*.ipynb"))
REQUIRED = {
    "00_quickstart",
    "01_data",
    "02_model",
    "10_train",
    "11_evaluate",
    "12_speed",
    "13_predict",
    "20_ablation",
    "30_attention",
    "31_inspector",
    "90_report",
}
GOLDEN = {"02_model"}
SANITIZE = PROJECT / "tests" / "nbval_sanitize.cfg"
LONGEST_CELL = 40
# No notebook in this suite is worth waiting longer for, a slow machine included
NOTEBOOK_TIMEOUT = 600

# Cheap values, by parameter name: a name means the same in every notebook, so each takes those that it declares.
CHEAP = {
    "dataset": "roadscenes",
    "model": "s2fpn_lite",
    "epochs": 1,
    "max_epochs": 1,
    "crop": [64, 96],
    "changes": {"train_split": "train:drive=park", "eval_images": 4},
    "batch_size": 2,
    "limit": 2,
    "images": 2,
    "seed": 1,
    "repeats": 1,
    "seconds": 0.1,
    "sizes": [[64, 96]],
}

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
golden_notebooks = pytest.mark.parametrize(
    "path", [path for path in NOTEBOOKS if path.stem in GOLDEN], ids=lambda path: path.stem
)


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def parameters_cell(notebook: nbformat.NotebookNode) -> int:
    """Index of the cell tagged `parameters`."""
    tagged = [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1, f"exactly one cell must be tagged 'parameters', there are {len(tagged)}"
    return tagged[0]


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Defaults must work for someone who has no data set: they fall back to RoadScenes."""
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("S2FPN_DATA", str(tmp_path / "empty"))


def test_required_notebooks_are_there():
    assert {path.stem for path in NOTEBOOKS} >= REQUIRED


@each_notebook
def test_first_cell_says_which_question_it_answers(path):
    first = read(path).cells[0]
    assert first.cell_type == "markdown"
    number = path.stem.split("_")[0]
    assert re.match(rf"# {number} · \S", first.source)
    assert "?" in first.source, "the first cell states the question that the notebook answers"


@each_notebook
def test_parameters_are_typed_commented_and_checked(path):
    notebook = read(path)
    index = parameters_cell(notebook)
    declared = declarations(notebook.cells[index].source)
    assert declared, "the cell tagged 'parameters' holds more than typed, commented literals"
    for line in notebook.cells[index].source.splitlines():
        assert line.count("=") <= 1, f"papermill misreads a line with a second '=': {line}"
    following = next(cell for cell in notebook.cells[index + 1 :] if cell.cell_type == "code")
    assert "checked_parameters()" in following.source
    seen_by_papermill = papermill.inspect_notebook(str(path))
    assert list(seen_by_papermill) == [declaration.name for declaration in declared]
    for declaration in declared:
        seen = seen_by_papermill[declaration.name]
        assert ast.literal_eval(seen["default"]) == declaration.default
        assert seen["help"].strip() == declaration.comment


@each_notebook
def test_form(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) >= (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in code_cells(notebook):
        lines = len(cell.source.splitlines())
        assert lines <= LONGEST_CELL, f"{lines} lines, the library is the place for it:\n{cell.source[:200]}"
        assert cell.source.strip(), "an empty code cell"


@each_notebook
def test_only_golden_notebooks_carry_outputs(path):
    cells = code_cells(read(path))
    if path.stem in GOLDEN:
        kinds = [output.output_type for cell in cells for output in cell.outputs]
        assert kinds, "a golden notebook without outputs compares nothing"
        assert "error" not in kinds
    else:
        for cell in cells:
            assert not cell.outputs, f"clear the outputs of:\n{cell.source[:200]}"
            assert cell.execution_count is None


@each_notebook
@pytest.mark.slow
@pytest.mark.timeout(NOTEBOOK_TIMEOUT + 60)
def test_papermill_with_overrides(path, no_data, tmp_path, monkeypatch):
    """Notebooks run in the order of their numbers and share this session's results, as in `make run`."""
    monkeypatch.delenv("MPLBACKEND")  # figures as pictures, as a notebook has them
    notebook = read(path)
    declared = {declaration.name for declaration in declarations(notebook.cells[parameters_cell(notebook)].source)}
    overrides = {name: value for name, value in CHEAP.items() if name in declared}
    executed = papermill.execute_notebook(
        path,
        tmp_path / path.name,
        parameters=overrides,
        kernel_name="python3",
        cwd=path.parent,
        progress_bar=False,
        execution_timeout=NOTEBOOK_TIMEOUT,
    )
    assert all(cell.execution_count for cell in code_cells(executed))
    outputs = [output for cell in code_cells(executed) for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs), "drawing functions return closed figures"


def nbval(path: Path, *options: str | Path) -> subprocess.CompletedProcess:
    """A pytest of its own over one notebook, in the notebook's folder and apart from this project's settings."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", os.devnull, "-rf"]
    command += [f"--rootdir={path.parent}", f"--nbval-cell-timeout={NOTEBOOK_TIMEOUT}", *options, path]
    return subprocess.run(
        [str(word) for word in command], cwd=path.parent, capture_output=True, text=True, timeout=NOTEBOOK_TIMEOUT
    )


def failed_cells(result: subprocess.CompletedProcess) -> set[int]:
    """Code cells (counted from 0) that the run reports as failed."""
    return {int(number) for number in re.findall(r"^FAILED .*::Cell (\d+)", result.stdout, flags=re.MULTILINE)}


@each_notebook
@pytest.mark.slow
@pytest.mark.timeout(NOTEBOOK_TIMEOUT + 60)
def test_run_all_with_defaults(path, no_data):
    """As a newcomer does it, without data. Golden outputs are compared strictly."""
    options = ["--nbval", f"--nbval-sanitize-with={SANITIZE}"] if path.stem in GOLDEN else ["--nbval-lax"]
    result = nbval(path, *options)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]


@pytest.mark.slow
def test_lax_finds_a_cell_that_fails(tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in ("1 + 1", "1 / 0")])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, tmp_path / "broken.ipynb")
    assert failed_cells(nbval(tmp_path / "broken.ipynb", "--nbval-lax")) == {1}


@each_notebook
def test_no_cell_hides_from_nbval(path):
    """Only pictures of golden notebooks are left out of the comparison; nothing is skipped or expected to fail."""
    tags = {tag for cell in read(path).cells for tag in cell.metadata.get("tags", [])}
    allowed = {"parameters", *({"nbval-ignore-output"} if path.stem in GOLDEN else ())}
    assert tags <= allowed


def altered(notebook: nbformat.NotebookNode) -> set[int]:
    """Changes one digit or letter in the text of every code cell's outputs; the numbers of the cells changed."""
    changed = set()
    for number, cell in enumerate(code_cells(notebook)):
        if "nbval-ignore-output" in cell.metadata.get("tags", []):
            continue  # a picture
        for output in cell.outputs:
            texts = output if output.output_type == "stream" else output.get("data", {})
            key = "text" if output.output_type == "stream" else "text/plain"
            if key in texts:
                texts[key] += "x"
                changed.add(number)
    return changed


@golden_notebooks
@pytest.mark.slow
@pytest.mark.timeout(NOTEBOOK_TIMEOUT + 60)
def test_golden_cells_are_compared(path, no_data, tmp_path, monkeypatch):
    """With every output altered, every cell that has one must fail, and no other."""
    monkeypatch.setenv("S2FPN_RESULTS", str(tmp_path / "results"))
    notebook = read(path)
    changed = altered(notebook)
    assert len(changed) >= 3, "a golden notebook with hardly any output guards hardly anything"
    copy = tmp_path / path.name
    nbformat.write(notebook, copy)
    assert failed_cells(nbval(copy, "--nbval", f"--nbval-sanitize-with={SANITIZE}")) == changed


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
    ],
)
def test_sanitizer_hides_what_varies(text, expected):
    assert sanitized(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "(1, 11, 360, 480)",
        "17.10 M parameters, 27.81 GMACs",
        "mIoU 0.701, strides 4/8/16/32",
        "S2-FPN18 v1: 87.3 FPS",
        "stride 32 slices",
        "apf1.sa.conv_sh.weight 256",
        "<Figure size 1200x400 with 4 Axes>",
        "https://github.com/mohamedac29/S2-FPN",
    ],
)
def test_sanitizer_keeps_what_the_notebook_is_about(text):
    assert sanitized(text) == text
