"""Running one notebook of a study: records, waiting for other processes, reserved GPUs.

The report page: self-contained, without code, titled by its first heading.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
import torch
from jupyter_client.manager import start_new_kernel

from s2fpn_lib.checkpoint import load_state
from s2fpn_lib.runs import RunDirectory
from s2fpn_lib.workbench import run_notebook as module
from s2fpn_lib.workbench.parameters import TABLE
from s2fpn_lib.workbench.run_notebook import NotebookError, export_html, main, reserved_gpus, run_notebook


def notebook(folder: Path, *cells: str) -> Path:
    """A notebook 20_try with the parameter `word` and these cells."""
    parameters = nbformat.v4.new_code_cell("word: str = 'a'  # a word", metadata={"tags": ["parameters"]})
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    made = nbformat.v4.new_notebook(cells=[parameters, *map(nbformat.v4.new_code_cell, cells)], metadata=kernel)
    path = folder / "20_try.ipynb"
    nbformat.write(made, path)
    return path


def outputs(path: str | Path) -> list[str]:
    """The text or the name of the error of every output in an executed notebook."""
    cells = nbformat.read(path, as_version=4).cells
    return [each.get("text") or each["ename"] for cell in cells for each in cell.get("outputs", [])]


def test_a_failure_is_recorded_until_the_notebook_succeeds(tmp_path):
    source = notebook(tmp_path, "print('a')", "# The division\nif word == 'a':\n    1 / 0", "print('b')")
    folder = tmp_path / "out"
    with pytest.raises(SystemExit, match="ZeroDivisionError") as caught:
        main([str(source), str(folder), "--parameters", '{"word": "a"}', "--threads", "1"])
    assert not (folder / "done.json").exists()
    failure = json.loads((folder / "failure.json").read_text())
    assert (failure["notebook"], failure["cell"]) == ("20_try.ipynb", "# The division")
    assert failure["error"] == "ZeroDivisionError: division by zero"
    assert Path(failure["executed"]) == folder / "20_try.ipynb"
    assert f"The notebook as far as it ran: {failure['executed']}" in str(caught.value)
    assert outputs(failure["executed"]) == ["a\n", "ZeroDivisionError"]

    main([str(source), str(folder), "--parameters", '{"word": "b"}', "--threads", "1"])
    assert not (folder / "failure.json").exists()
    assert json.loads((folder / "done.json").read_text())["notebook"] == "20_try"
    assert outputs(folder / "20_try.ipynb") == ["a\n", "b\n"]


TRAINING = """
from s2fpn_lib.train import TrainConfig, train
changes = dict(train_split="train:drive=park", crop=[32, 48], epochs=500, eval_images=1, checkpoint_minutes=0.0)
config = TrainConfig.preset("quick", dataset="roadscenes", device="cpu", encoder_weights="", encoder_lr=0.0, **changes)
train(config, run_dir={folder!r}, progress=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["interrupt", "parent"])
def test_a_training_in_a_kernel_that_is_interrupted_or_loses_its_parent_is_saved(tmp_path, how):
    """As the interrupt button does, and as papermill does when it is terminated."""
    run, said = RunDirectory(tmp_path / "run"), []
    if how == "interrupt":
        manager, client = start_new_kernel(cwd=str(tmp_path))
        try:
            request = client.execute(TRAINING.format(folder=str(run.path)))
            until_trained(run)
            (tmp_path / "mark").touch()
            manager.interrupt_kernel()
            assert answer(client.get_shell_msg, request)["ename"] == "KeyboardInterrupt"
            while (message := answer(client.get_iopub_msg, request)).get("execution_state") != "idle":
                said.append(message.get("text", ""))
            assert "stopped by SIGINT after step" in "".join(said)
            assert client.execute_interactive("1 + 1", timeout=60)["content"]["status"] == "ok"
        finally:
            client.stop_channels()
            manager.shutdown_kernel(now=True)
    else:
        source = notebook(tmp_path, TRAINING.format(folder=str(run.path)))
        command = [sys.executable, "-m", "papermill", str(source), str(tmp_path / "out.ipynb")]
        papermill = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        until_trained(run)
        (tmp_path / "mark").touch()
        papermill.terminate()
        assert papermill.wait(60) == -signal.SIGTERM
        with module._locked([run.path], 1):  # waits for the kernel
            pass
    assert run.state.stat().st_mtime_ns > (tmp_path / "mark").stat().st_mtime_ns
    assert load_state(run.state)["step"] > 0
    assert not run.result.exists()


def answer(get, request: str) -> dict:
    """The next message to this request; after a slow start, replies to earlier ones (is it ready?) come first."""
    while (message := get(timeout=60))["parent_header"].get("msg_id") != request:
        pass
    return message["content"]


def until_trained(run: RunDirectory) -> None:
    """Waits for the first epoch, and then a moment."""
    limit = time.monotonic() + 120
    while not run.metrics.exists():
        assert time.monotonic() < limit
        time.sleep(0.05)
    time.sleep(0.7)


def test_a_kernel_that_dies_is_a_failure_with_its_cell(tmp_path):
    last_words = "import os, time\nprint('last words', flush=True)\ntime.sleep(0.2)\nos._exit(9)"
    source = notebook(tmp_path, "print('a')", last_words, "print('b')", "print('c')")
    with pytest.raises(NotebookError, match=r"cell that begins with\n    import os, time") as caught:
        run_notebook(source, tmp_path / "out", {"word": "x"})
    failure = json.loads((tmp_path / "out" / "failure.json").read_text())
    assert failure["cell"] == "import os, time"
    assert "Dead" in failure["error"]
    assert failure["executed"] == caught.value.executed == str(tmp_path / "out" / "20_try.ipynb")
    assert failure["executed"] in str(caught.value)
    assert outputs(failure["executed"]) == ["a\n", "last words\n"]


def test_the_executed_notebook_of_an_earlier_attempt_is_not_named(tmp_path):
    source, earlier = tmp_path / "20_try.ipynb", tmp_path / "out" / "20_try.ipynb"
    source.write_text("{")
    earlier.parent.mkdir()
    earlier.write_text("of an earlier attempt")
    with pytest.raises(NotebookError, match="There is no executed notebook") as caught:
        run_notebook(source, earlier.parent, {})
    assert str(earlier) not in str(caught.value)
    assert json.loads((earlier.parent / "failure.json").read_text())["executed"] == ""
    assert not earlier.exists()


def test_threads_and_variant_reach_the_kernel(tmp_path):
    source = notebook(tmp_path, "import os", "raise ValueError(os.environ['OMP_NUM_THREADS'] + study)")
    with pytest.MonkeyPatch.context() as patch:
        for name in module.THREAD_VARIABLES:
            patch.setenv(name, "7")  # put back afterwards
        with pytest.raises(SystemExit):
            main([str(source), str(tmp_path / "out"), "--parameters", '{"study": "s", "seed": 4}', "--threads", "3"])
    failure = json.loads((tmp_path / "out" / "failure.json").read_text())
    assert failure["error"] == "ValueError: 3s"
    assert (failure["study"], failure["seed"]) == ("s", 4)


@pytest.fixture
def no_kernel(monkeypatch):
    """Creates the executed copy of a notebook without running it."""
    monkeypatch.setattr(module, "execute", lambda source, target, values: target.touch())


def test_waits_for_a_training_in_the_same_folder(tmp_path, capsys, no_kernel):
    source, folder = notebook(tmp_path, "word"), tmp_path / "out"
    (folder / "run").mkdir(parents=True)
    ended = []

    def other_training():
        with RunDirectory(folder / "run").lock():
            begun.set()
            time.sleep(0.7)
            ended.append((folder / "20_try.ipynb").exists())

    begun = threading.Event()
    thread = threading.Thread(target=other_training)
    thread.start()
    begun.wait()
    run_notebook(source, folder, {})
    thread.join()
    assert ended == [False], "the notebook was started while the training still ran"
    assert capsys.readouterr().out.count("waiting: ") == 1
    assert (folder / "done.json").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SystemExit, match=f"{tmp_path / 'file' / 'out'} cannot be written"):
        main([str(notebook(tmp_path, "word")), str(tmp_path / "file" / "out"), "--threads", "1"])
    assert (tmp_path / "file").read_text() == "in the way"


def test_fresh_deletes_an_unfinished_measurement(tmp_path, no_kernel):
    source = notebook(tmp_path, "word")
    old = tmp_path / "out" / "20_try" / "speed.jsonl"
    old.parent.mkdir(parents=True)
    old.write_text("{}\n")
    main([str(source), str(tmp_path / "out"), "--threads", "1", "--fresh"])
    assert not old.exists()


@pytest.fixture
def two_gpus(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(module.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(module, "POLL_SECONDS", 0.01)


def test_each_training_gets_its_own_gpus(two_gpus):
    got = []

    def third():
        with reserved_gpus(1) as names:
            got.append(names)

    with reserved_gpus(1) as second, reserved_gpus(0) as none:
        with reserved_gpus(1) as first:
            assert (sorted(first + second), none) == (["0", "1"], [])
            thread = threading.Thread(target=third)
            thread.start()
            time.sleep(0.1)
            assert got == [], "a third training must wait"
        thread.join()
    assert got == [first]
    with reserved_gpus(2) as both:
        assert both == ["0", "1"]


def test_gpus_assigned_by_a_cluster_are_not_reserved(two_gpus, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    with reserved_gpus(1) as first, reserved_gpus(1) as second:
        assert first == second == ["5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6")
    with reserved_gpus(1) as first, reserved_gpus(1) as second:
        assert sorted(first + second) == ["5", "6"]


def test_more_gpus_than_there_are_is_an_error(two_gpus):
    with pytest.raises(NotebookError, match="3 GPUs were asked for, and there are 2: 0, 1"), reserved_gpus(3):
        pass


class Loaded(HTMLParser):
    """Everything that a page would load from elsewhere."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found += [v for k, v in attrs if k in ("src", "href") and not v.startswith(("data:", "#"))]
        self.found += [tag] if tag in ("script", "link", "iframe") else []


def test_the_page_shows_texts_and_outputs_and_loads_nothing(tmp_path):
    output = nbformat.v4.new_output("display_data", {"image/png": "iVBORw0KGgo=", "text/plain": "<Figure>"})
    shown = nbformat.v4.new_output("display_data", {"text/markdown": "# Runs & scores"})
    table = nbformat.v4.new_output("display_data", {"text/html": "<table>title</table>"}, metadata={TABLE: True})
    cells = [
        nbformat.v4.new_markdown_cell("# 90 · Report"),
        nbformat.v4.new_code_cell("checked_parameters()", outputs=[table]),
        nbformat.v4.new_code_cell("secret = 1", outputs=[shown, output]),
        nbformat.v4.new_markdown_cell("[Scores](#Scores)\n\n## Scores"),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "90_report.ipynb")
    text = export_html(tmp_path / "90_report.ipynb", tmp_path / "report.html").read_text()
    loaded = Loaded()
    loaded.feed(text)
    assert loaded.found == []
    assert "url(" not in text
    assert "<title>Runs &amp; scores</title>" in text
    assert 'id="Scores"' in text
    assert "data:image/png;base64,iVBORw0KGgo=" in text
    assert "secret" not in text
    assert "90 · Report" not in text
    assert "<table>" not in text, "the page begins with the report, not with the notebook's parameters"
