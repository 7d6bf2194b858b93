"""Run directories: atomic writes, rows after a crash, locks, provenance."""

import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from s2fpn_lib import runs
from s2fpn_lib.runs import ConfigChanged, RunDirectory, RunLocked, append_row, read_rows, write_atomic
from tests.loading import load_file


def test_write_atomic_leaves_no_other_file(tmp_path):
    write_atomic(tmp_path / "new" / "file", "grün")
    write_atomic(tmp_path / "new" / "file", b"second")
    assert (tmp_path / "new" / "file").read_bytes() == b"second"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]


def test_results_folder_is_created(tmp_path, monkeypatch):
    monkeypatch.delenv("S2FPN_RESULTS")
    assert runs.results_root() == runs.PROJECT / "results"
    monkeypatch.setenv("S2FPN_RESULTS", str(tmp_path / "default"))
    assert runs.results_folder(tmp_path / "given", "10_train") == tmp_path / "given" / "10_train"
    assert runs.results_folder("", "10_train") == tmp_path / "default" / "10_train"
    assert (tmp_path / "given" / "10_train").is_dir()


def test_a_failed_write_keeps_the_old_contents(tmp_path, monkeypatch):
    write_atomic(tmp_path / "file", "old")

    def full_disk(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_atomic(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_unfinished_last_line_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_row(path, {"epoch": 1})
    with path.open("a") as file:
        file.write('{"epoch": 2, "lo')  # killed while writing
    assert read_rows(path) == [{"epoch": 1}]
    append_row(path, {"epoch": 2})
    assert read_rows(path) == [{"epoch": 1}, {"epoch": 2}]
    assert read_rows(tmp_path / "none.jsonl") == []


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"epoch": 1}\nrubbish\n{"epoch": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl line 2"):
        read_rows(path)


def _append_many(path: Path, writer: int) -> None:
    for number in range(30):
        append_row(path, {"writer": writer, "number": number})


def test_several_processes_append_whole_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_append_many, args=(path, writer)) for writer in range(3)]
    for process in writers:
        process.start()
    for process in writers:
        process.join()
    rows = read_rows(path)
    for writer in range(3):
        assert [row["number"] for row in rows if row["writer"] == writer] == list(range(30))


def _hold(path: Path, ready: multiprocessing.connection.Connection) -> None:
    with RunDirectory(path).lock():
        ready.send("locked")
        signal.pause()


def test_a_run_is_locked_until_its_process_ends(tmp_path):
    run = RunDirectory(tmp_path / "run")
    context = multiprocessing.get_context("fork")
    ready, sender = context.Pipe(duplex=False)
    holder = context.Process(target=_hold, args=(run.path, sender))
    holder.start()
    try:
        assert ready.poll(30)
        with pytest.raises(RunLocked, match=f"process {holder.pid}"), run.lock():
            pass
        (run.path / ".last.pt.1.tmp").write_text("half a state")
    finally:
        holder.kill()
        holder.join()
    with run.lock():
        assert not (run.path / ".last.pt.1.tmp").exists()
        with pytest.raises(RunLocked, match="by this process"), run.lock():
            pass
    with run.lock():
        pass


def test_a_run_directory_holds_one_recipe(tmp_path):
    run = RunDirectory(tmp_path)
    run.claim({"lr": 0.1, "crop": [4, 4]}, {})
    run.claim({"crop": [4, 4], "lr": 0.1}, {})
    run.claim({"lr": 0.1, "crop": [4, 4], "new_field": 0}, {"new_field": 0})
    with pytest.raises(ConfigChanged, match=r"lr 0\.1 -> 0\.2, crop \[4, 4\] -> None"):
        run.claim({"lr": 0.2, "crop": None}, {})
    assert json.loads(run.config.read_text()) == {"lr": 0.1, "crop": [4, 4]}


def test_a_run_directory_holds_one_state_of_the_data(tmp_path, capsys):
    run, data = RunDirectory(tmp_path), {"train": "0" * 12, "val": "1" * 12}
    run.claim({"lr": 0.1}, {})
    run.claim({"lr": 0.1}, {}, data)  # of a version that did not record the data
    assert "does not record its data" in capsys.readouterr().out
    assert json.loads(run.config.read_text()) == {"lr": 0.1, "data": data}
    run.claim({"lr": 0.1}, {}, data)
    with pytest.raises(ConfigChanged, match=r"other data .*val 1{12} -> 2{12}.*Choose another run_dir"):
        run.claim({"lr": 0.1}, {}, {**data, "val": "2" * 12})


class Msvcrt:
    """msvcrt.locking over a table of locked files, as Windows keeps it for all processes."""

    LK_LOCK, LK_NBLCK, LK_UNLCK = 1, 2, 0

    def __init__(self):
        self.locked = set()

    def locking(self, descriptor, mode, count):
        stat = os.fstat(descriptor)
        place = (stat.st_ino, os.lseek(descriptor, 0, os.SEEK_CUR), count)
        if mode == self.LK_UNLCK:
            self.locked.remove(place)
        elif place in self.locked:
            raise PermissionError("locked")
        else:
            self.locked.add(place)


def test_locks_and_rows_work_without_fcntl(tmp_path, monkeypatch):
    windows = Msvcrt()
    monkeypatch.setitem(sys.modules, "fcntl", None)  # importing it fails
    monkeypatch.setitem(sys.modules, "msvcrt", windows)
    monkeypatch.setitem(sys.modules, "__init__", None)
    monkeypatch.setattr(runs, "files", runs.files)  # to be restored
    loaded = []
    for _ in range(2):  # as in two processes
        monkeypatch.delitem(sys.modules, "s2fpn_lib.runs.files", raising=False)
        loaded.append(load_file(Path(runs.__file__)))
    first, second = loaded
    assert runs.files.fcntl is None
    with first.RunDirectory(tmp_path).lock():
        with pytest.raises(second.RunLocked, match=f"process {os.getpid()}"), second.RunDirectory(tmp_path).lock():
            pass
        first.append_row(tmp_path / "rows.jsonl", {"epoch": 1})
        second.append_row(tmp_path / "rows.jsonl", {"epoch": 2})
        first.write_json(tmp_path / "config.json", {})
    assert first.read_rows(tmp_path / "rows.jsonl") == [{"epoch": 1}, {"epoch": 2}]
    with second.RunDirectory(tmp_path).lock():
        pass
    assert not windows.locked


def test_metrics_and_environments_of_earlier_starts(tmp_path):
    run = RunDirectory(tmp_path)
    for epoch in (1, 2, 3):
        append_row(run.metrics, {"epoch": epoch})
    run.drop_metrics_after(2)
    assert [row["epoch"] for row in read_rows(run.metrics)] == [1, 2]
    for start in ("first", "second", "third"):
        run.record_environment({"time": start})
    recorded = json.loads(run.environment.read_text())
    assert recorded["time"] == "third"
    assert [each["time"] for each in recorded["earlier_starts"]] == ["first", "second"]


def test_config_hash_ignores_key_order():
    assert runs.config_hash({"a": 1, "b": [1, 2]}) == runs.config_hash({"b": [1, 2], "a": 1})
    assert runs.config_hash({"a": 1}) != runs.config_hash({"a": 2})
    assert len(runs.config_hash({})) == 12


def test_environment_is_json():
    environment = json.loads(json.dumps(runs.environment()))
    for key in ("time", "python", "torch", "torchvision", "cpu", "threads", "gpus", "git_sha", "dirty"):
        assert key in environment
    assert environment["cpu"]


def test_the_instruction_set_names_its_limit(monkeypatch):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    free = runs.environment()["instruction_set"]
    assert free
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert runs.environment()["instruction_set"] == f"{free}, limited to AVX2"


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_code_version_is_the_projects_commit(tmp_path):
    assert runs.code_version(tmp_path) == {"git_sha": None, "dirty": None}
    git(tmp_path, "init", "-q")
    (tmp_path / "file").write_text("1")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-q", "-m", "one")
    sha = git(tmp_path, "rev-parse", "HEAD")
    assert runs.code_version(tmp_path) == {"git_sha": sha, "dirty": False}
    (tmp_path / "file").write_text("2")
    assert runs.code_version(tmp_path) == {"git_sha": sha, "dirty": True}
    (tmp_path / "installed").mkdir()
    assert runs.code_version(tmp_path / "installed") == {"git_sha": None, "dirty": None}
