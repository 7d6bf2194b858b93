"""Notebook parameters: what a parameters cell is, what is refused, and that it holds in real kernels."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import nbformat
import papermill
import pytest

from s2fpn_lib.runs import WriteError
from s2fpn_lib.workbench import parameters
from s2fpn_lib.workbench.parameters import ParameterError, checked_parameters, declarations

CELL = """\
dataset: str = "auto"  # camvid, roadscenes or auto
epochs: int = 3  # passes over the training split
lr: float = 3e-4  # peak learning rate
flip: bool = True  # mirror half of the images
crop: tuple[int, int] = (240, 320)  # height, width
limit: int | None = None  # images to score; None: all
"""
CALL = "parameters = checked_parameters()"
PARAMETERS = '<th style="text-align: left">parameter</th>'  # head of the table


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch):
    """Runs cells as a kernel would, keeping their history, and returns what the last call found."""
    shell = SimpleNamespace(user_ns={}, history_manager=SimpleNamespace(input_hist_parsed=[""]))
    monkeypatch.setattr(parameters, "get_ipython", lambda: shell)
    shell.user_ns["checked_parameters"] = checked_parameters

    def run(*cells: str) -> dict:
        for cell in cells:
            shell.history_manager.input_hist_parsed.append(cell)
            exec(cell, shell.user_ns)
        return shell.user_ns["parameters"]

    run.namespace = shell.user_ns
    return run


def test_defaults_come_back_in_order(notebook):
    found = notebook("import os", CELL, CALL)
    assert list(found.items()) == [
        ("dataset", "auto"),
        ("epochs", 3),
        ("lr", 3e-4),
        ("flip", True),
        ("crop", (240, 320)),
        ("limit", None),
    ]


def test_injected_values_are_in_force(notebook):
    found = notebook(CELL, '# Parameters\nepochs = 7\ndataset = "camvid"\nlr = float("inf")\n', CALL)
    assert (found["epochs"], found["dataset"], found["lr"]) == (7, "camvid", float("inf"))


def test_unknown_name_names_the_nearest_and_lists_all(notebook):
    with pytest.raises(ParameterError, match=r"no parameter 'epoch'. Did you mean 'epochs'\?") as caught:
        notebook(CELL, "# Parameters\nepoch = 7\n", CALL)
    assert "limit: int | None = None  # images to score; None: all" in str(caught.value)


def test_unknown_name_without_a_near_match_guesses_nothing(notebook):
    with pytest.raises(ParameterError) as caught:
        notebook(CELL, "# Parameters\nzzz = 7\n", CALL)
    assert "Did you mean" not in str(caught.value)


def test_the_table_shows_values_defaults_and_comments_and_marks_what_was_changed(notebook, monkeypatch):
    shown = []
    monkeypatch.setattr(parameters, "display", lambda data, **options: shown.append((data, options)))
    cell = CELL + "name: str = '<b>'  # a < b\n"
    notebook(cell, "# Parameters\nepochs = 7\ncrop = [240, 320]\nlr = 1\n", CALL)
    ((data, options),) = shown
    assert options == {"raw": True, "metadata": {parameters.TABLE: True}}
    table = ElementTree.fromstring(data["text/html"])
    assert [["".join(cell.itertext()) for cell in row] for row in table.iter("tr")] == [
        ["parameter", "value", "default", "meaning"],
        ["dataset", "'auto'", "'auto'", "camvid, roadscenes or auto"],
        ["epochs", "7", "3", "passes over the training split"],
        ["lr", "1.0", "0.0003", "peak learning rate"],
        ["flip", "True", "True", "mirror half of the images"],
        ["crop", "(240, 320)", "(240, 320)", "height, width"],
        ["limit", "None", "None", "images to score; None: all"],
        ["name", "'<b>'", "'<b>'", "a < b"],
    ]
    assert [bold.text for bold in table.iter("b")] == ["7", "1.0"]
    assert table.findtext("summary") == "parameters: epochs = 7, lr = 1.0"
    notebook(cell, CALL)
    assert ElementTree.fromstring(shown[1][0]["text/html"]).findtext("summary") == "parameters: all at their defaults"


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("epochs = 2.5", "'epochs' must be int"),
        ("epochs = True", "'epochs' must be int"),
        ("epochs = '3'", "'epochs' must be int"),
        ("epochs = None", "'epochs' must be int"),
        ("lr = 'fast'", "'lr' must be float"),
        ("lr = '3'", "'lr' must be float"),
        ("lr = False", "'lr' must be float"),
        ("flip = 'true'", "Write True or False"),
        ("flip = 1", "'flip' must be bool"),
        ("dataset = 2024", "-r dataset VALUE keeps text"),
        ("crop = '(1, 2)'", "YAML"),
        ("crop = [1, 2, 3]", r"'crop' must be tuple\[int, int\]"),
        ("crop = [1, 2.5]", r"'crop' must be tuple\[int, int\]"),
        ("limit = 'all'", r"'limit' must be int \| None"),
    ],
)
def test_wrong_type_is_refused(notebook, assignment, message):
    with pytest.raises(ParameterError, match=message):
        notebook(CELL, f"# Parameters\n{assignment}\n", CALL)


def test_int_for_float_and_list_for_tuple_are_converted_in_the_notebook_too(notebook):
    found = notebook(CELL, "# Parameters\nlr = 1\ncrop = [96, 128]\nlimit = 5\n", CALL)
    assert found["lr"] == 1.0
    assert isinstance(notebook.namespace["lr"], float)
    assert found["crop"] == notebook.namespace["crop"] == (96, 128)
    assert found["limit"] == 5


@pytest.mark.parametrize("text", ["3e-4", "3E-4", "3.0e-4", "+30e-5"])
def test_a_number_that_yaml_takes_for_text_is_one(notebook, text):
    assert notebook(CELL, f"# Parameters\nlr = {text!r}\n", CALL)["lr"] == pytest.approx(3e-4)


@pytest.mark.parametrize(
    ("annotation", "good", "bad"),
    [
        ("list[float]", "[1, 2.5]", "[1, 'a']"),
        ("dict[str, int]", "{'a': 1}", "{'a': 'b'}"),
        ("tuple[float, ...]", "[1]", "['a']"),
        ("Literal['v1', 'v2']", "'v2'", "'v3'"),
        ("float | int", "3", "'3'"),
        ("str | None", "None", "3"),
    ],
)
def test_annotations(notebook, annotation, good, bad):
    notebook("from typing import Literal", f"value: {annotation} = {good}  # anything\n", CALL)
    with pytest.raises(ParameterError, match="'value' must be"):
        notebook(f"# Parameters\nvalue = {bad}\n", CALL)


def test_int_stays_int_where_both_fit(notebook):
    assert type(notebook("value: float | int = 3  # either\n", CALL)["value"]) is int


def test_running_the_cells_again(notebook):
    """A reader edits the parameters cell and runs it again, with papermill's old cell still in the history."""
    with pytest.raises(ParameterError):
        notebook(CELL, "# Parameters\nepoch_typo = 7\n", CALL)
    found = notebook(CELL.replace("= 3 ", "= 4 "), CALL)
    assert found["epochs"] == 4
    assert notebook("# Parameters\nepochs = 9\n", CALL)["epochs"] == 9
    assert notebook("history: list[float] = []", "other = 3", CALL)["epochs"] == 9


def test_a_reused_name_says_so(notebook):
    notebook(CELL, CALL)
    with pytest.raises(ParameterError, match="reused the name"):
        notebook("import pathlib\nepochs = pathlib.Path()", CALL)


def test_a_deleted_name_says_so(notebook):
    with pytest.raises(ParameterError, match="'epochs' was deleted"):
        notebook(CELL, "del epochs", CALL)


def test_heading_like_papermills_does_not_hide_the_parameters_cell(notebook):
    assert notebook("# Parameters\n" + CELL, CALL)["epochs"] == 3


def test_without_a_parameters_cell(notebook):
    with pytest.raises(ParameterError, match="No parameters cell has run"):
        notebook("epochs = 3", CALL)


def test_outside_a_notebook():
    with pytest.raises(ParameterError, match="no notebook is running"):
        checked_parameters()


@pytest.mark.parametrize("line", ["seed = 0  # untyped", "seed: int = 0"])
def test_a_line_without_type_or_comment_is_refused(line):
    with pytest.raises(ParameterError, match="without a type or a comment: 'seed"):
        declarations(CELL + line)


def test_other_cells_are_no_parameters_cells():
    for source in ["", "epochs = 3", "import torch", "x: list = []", "y: int = f()  # call", "if", CELL + "print(1)"]:
        assert declarations(source) == {}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A notebook that does nothing but check and show its parameters."""
    cells = [
        nbformat.v4.new_code_cell("from s2fpn_lib.workbench.parameters import checked_parameters"),
        nbformat.v4.new_code_cell(CELL, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("checked_parameters()"),
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path = tmp_path_factory.mktemp("tiny") / "tiny.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)
    return path


def execute(tiny: Path, **values) -> str:
    """The text that the last cell shows, after a real papermill run."""
    executed = papermill.execute_notebook(
        tiny, tiny.with_name("out.ipynb"), parameters=values, progress_bar=False, kernel_name="python3"
    )
    assert PARAMETERS in executed.cells[-1].outputs[0]["data"]["text/html"]
    assert "text/plain" not in executed.cells[-1].outputs[0]["data"]
    return executed.cells[-1].outputs[1]["data"]["text/plain"]


def test_papermill_good(tiny):
    shown = execute(tiny, epochs=7, lr=1, crop=[96, 128])
    assert "'epochs': 7, 'lr': 1.0" in shown.replace("\n", "")
    assert "'crop': (96, 128)" in shown


def test_nbval(tiny):
    """nbval keeps no input history, and yet the parameters must be found."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", os.devnull, "--nbval-lax", tiny.name]
    result = subprocess.run(command, cwd=tiny.parent, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert "3 passed" in result.stdout


def test_papermill_unknown(tiny):
    with pytest.raises(papermill.PapermillExecutionError, match="Did you mean 'epochs'"):
        execute(tiny, epoch=7)


def test_papermill_mistyped(tiny):
    with pytest.raises(papermill.PapermillExecutionError, match="Write True or False"):
        execute(tiny, flip="true")


def test_a_results_folder_that_is_not_writable_ends_the_notebook_at_its_start(notebook, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    cell = 'results: str = ""  # folder of the results\n'
    assert notebook(cell, f'# Parameters\nresults = "{tmp_path / "new" / "folder"}"\n', CALL)
    assert not (tmp_path / "new").exists()
    with pytest.raises(WriteError, match=rf"could not write {tmp_path}/file/results .*S2FPN_RESULTS"):
        notebook(cell, f'# Parameters\nresults = "{tmp_path / "file" / "results"}"\n', CALL)
    monkeypatch.setenv("S2FPN_RESULTS", str(tmp_path / "file"))
    with pytest.raises(WriteError, match=rf"could not write {tmp_path}/file "):
        notebook(cell, '# Parameters\nresults = ""\n', CALL)
