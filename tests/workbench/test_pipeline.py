"""The pipeline of `make run`: parameters reach their notebooks, results are kept, errors name the notebook."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from s2fpn_lib.workbench import pipeline
from s2fpn_lib.workbench.pipeline import distribute, main, run
from s2fpn_lib.workbench.run_notebook import NotebookError

TYPES = {
    "10_train": {"dataset": "str", "epochs": "int", "flip": "bool"},
    "11_evaluate": {"dataset": "str", "limit": "int"},
}


def write_notebook(folder: Path, name: str, body: str, parameters: str = "word: str = 'a'  # a word") -> None:
    cells = [
        nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(body),
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    folder.mkdir(exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / f"{name}.ipynb")


def test_each_notebook_gets_what_it_declares():
    assert distribute(["DATASET=camvid", "epochs=5", "FLIP=False", "LIMIT=3"], TYPES) == {
        "10_train": {"preset": "quick", "dataset": "camvid", "epochs": 5, "flip": False},
        "11_evaluate": {"dataset": "camvid", "limit": 3},
    }


def test_text_stays_text_where_text_is_declared():
    assert distribute(["DATASET=2024"], TYPES)["10_train"] == {"preset": "quick", "dataset": "2024"}


def test_paths_are_relative_to_the_shell_and_not_to_the_notebooks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("data.yaml").touch()
    Path("camvid").mkdir()  # a name is a name, whatever lies in the folder
    for given, expected in {"data.yaml": str(tmp_path / "data.yaml"), "camvid": "camvid"}.items():
        assert distribute([f"DATASET={given}"], TYPES)["10_train"]["dataset"] == expected


@pytest.mark.parametrize(("assignment", "near"), [("EPOCH=5", True), ("EPOCHS", True), ("zzz=1", False)])
def test_unknown_parameter_is_refused_before_anything_runs(assignment, near):
    with pytest.raises(NotebookError, match="fits no notebook of the pipeline") as caught:
        distribute([assignment], TYPES)
    assert "Known: DATASET EPOCHS FLIP LIMIT" in str(caught.value)
    assert ("Did you mean 'EPOCHS'?" in str(caught.value)) == near


def test_speed_and_inspector_show_the_network_of_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("S2FPN_RESULTS", str(tmp_path / "out"))
    given = {}
    monkeypatch.setattr(pipeline, "newest_run", lambda results: results / "train" / "run")
    monkeypatch.setattr(pipeline, "execute", lambda source, target, values: given.update({source.stem: values}))
    monkeypatch.setattr(pipeline, "export_html", lambda executed, target: target)
    run()
    assert list(given) == list(pipeline.NOTEBOOKS)
    trained = str(tmp_path / "out" / "train" / "run")
    assert given["12_speed"]["models"] == [trained]
    assert given["31_inspector"] == {"checkpoint": trained}
    run(["CHECKPOINT=s2fpn_lite-camvid"])
    assert given["31_inspector"] == {"checkpoint": "s2fpn_lite-camvid"}


def test_run_keeps_executed_notebooks_and_returns_the_report(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("S2FPN_RESULTS", str(tmp_path / "out"))
    write_notebook(tmp_path / "notebooks", "90_report", "from pathlib import Path\nprint(word)\nPath.cwd().name")
    report = run(["WORD=hello"], notebooks=["90_report"], folder=tmp_path / "notebooks")
    assert report == tmp_path / "out" / "report.html"
    assert "hello" in report.read_text()
    printed = capfd.readouterr()
    assert printed.out.startswith("[1/1] 90_report ... ")
    assert printed.err == "", "warnings between the progress lines"
    executed = nbformat.read(tmp_path / "out" / "main" / "90_report.ipynb", as_version=4)
    assert executed.cells[-1].outputs[-1]["data"]["text/plain"] == "'notebooks'"


def test_a_failing_notebook_is_named_with_its_cell_and_its_executed_copy(tmp_path, monkeypatch):
    monkeypatch.setenv("S2FPN_RESULTS", str(tmp_path / "out"))
    write_notebook(tmp_path / "notebooks", "10_train", "rate = 1\nrate / 0")
    write_notebook(tmp_path / "notebooks", "90_report", "print('never')")
    with pytest.raises(NotebookError) as caught:
        run(notebooks=["10_train", "90_report"], folder=tmp_path / "notebooks")
    message = str(caught.value)
    assert "10_train.ipynb failed in the cell that begins with\n    rate = 1" in message
    assert "ZeroDivisionError: division by zero" in message
    assert str(tmp_path / "out" / "main" / "10_train.ipynb") in message
    assert (tmp_path / "out" / "main" / "10_train.ipynb").is_file()
    assert not (tmp_path / "out" / "main" / "90_report.ipynb").exists()


def test_exit_code_and_output(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(pipeline, "run", lambda arguments: tmp_path / "report.html")
    main([])
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "report.html")

    def failing(arguments):
        raise NotebookError("10_train.ipynb failed")

    monkeypatch.setattr(pipeline, "run", failing)
    with pytest.raises(SystemExit, match=r"10_train\.ipynb failed"):
        main([])
