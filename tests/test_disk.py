"""Full and read-only disks, damaged caches, and clocks that are set back, on small file systems in memory.

They are mounted, which needs the rights of an administrator on Linux; where these are missing, the tests are skipped.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from unittest import mock

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from s2fpn_lib import runs
from s2fpn_lib import train as train_module
from s2fpn_lib.checkpoint import load_model
from s2fpn_lib.data import DatasetError, get_protocol, open_dataset, train_loader
from s2fpn_lib.data.cache import CachedDataset, CacheSpaceError, DecodedDataset
from s2fpn_lib.inference.export import export_onnx, export_program
from s2fpn_lib.inspector import State, export
from s2fpn_lib.report import collect, comparison
from s2fpn_lib.report.tables import TableFolder
from s2fpn_lib.runs import RunDirectory, WriteError, append_row, atomic_file, write_atomic
from s2fpn_lib.viz.style import save_figure
from s2fpn_lib.workbench import media, pipeline, run_notebook
from s2fpn_lib.workbench.predict import predict
from s2fpn_lib.workbench.provenance import newest_run
from tests.inspecting import inspection, network
from tests.reporting import evaluation, training_run
from tests.test_train import Scenes, few_scenes_and_one_commit, tiny

PAGE = os.sysconf("SC_PAGE_SIZE")  # what a file in memory is made of
PROTOCOL = get_protocol("roadscenes")


class Disk:
    """A file system in memory, mounted at `path`."""

    def __init__(self, path: Path):
        self.path = path
        path.mkdir()

    def mount(self, options: str) -> subprocess.CompletedProcess:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.path)]
        return subprocess.run(command, capture_output=True, text=True)

    def fill(self, left: int = 0) -> None:
        """Takes all room but `left` bytes, until `make_room`."""
        usage = os.statvfs(self.path)
        with (self.path / "filler").open("ab") as file:
            end = file.tell() + max(0, usage.f_bavail * usage.f_frsize - left)
            os.posix_fallocate(file.fileno(), 0, max(1, end))

    def make_room(self) -> None:
        (self.path / "filler").unlink(missing_ok=True)

    @contextlib.contextmanager
    def full_at(self, name: str, left: int = 0):
        """In this block, the disk is full from the moment at which the file `name` is opened to be written."""
        opened = Path.open

        def filled(path, mode="r", *arguments, **options):
            file = opened(path, mode, *arguments, **options)
            if mode[0] in "wax" and (path.name == name or path.name.startswith(f".{name}.")):
                self.fill(left)
            return file

        try:
            with mock.patch.object(Path, "open", filled):
                yield
        finally:
            self.make_room()

    @contextlib.contextmanager
    def read_only(self):
        self.mount("remount,ro").check_returncode()
        try:
            yield self.path
        finally:
            self.mount("remount,rw").check_returncode()


@pytest.fixture
def disk(tmp_path):
    if shutil.which("mount") is None or sys.platform != "linux":
        pytest.skip("needs mount of Linux")
    disk = Disk(tmp_path / "disk")
    mounted = disk.mount("size=800m")
    if mounted.returncode:
        pytest.skip(f"this user cannot mount a file system: {mounted.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk.path)], check=True)


def content(folder: Path) -> dict[str, bytes]:
    """{path in the folder: bytes} of all files, also the hidden ones."""
    names = {"filler", "lock"}
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in names]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def full(path: Path | str) -> str:
    return rf"could not write .*{path} \(No space left on device\).*intact: make room"


@pytest.fixture(scope="module")
def _scenes():
    scenes, commit = few_scenes_and_one_commit()
    with scenes, commit:
        yield


@pytest.mark.usefixtures("_scenes")
def test_each_write_of_a_training_can_meet_a_full_disk(disk, tmp_path):
    """The same call is repeated and comes one file further each time. The reference runs with a clock going back."""
    config = tiny(epochs=1, batch_size=5, max_minutes=60.0)
    ticks = (2e9 - 3600 * n for n in itertools.count())
    with mock.patch.object(time, "time", side_effect=ticks):
        reference = train_module.train(config, run_dir=tmp_path / "reference")
    assert reference.summary["stopped_by"] == "epochs"
    assert 0 < reference.summary["seconds"] < 600
    run, steps = RunDirectory(disk.path / "results" / "run"), []
    planned = ["config.json", "environment.json", "best.safetensors", "metrics.jsonl", "last.pt"]
    for name in [*planned, "last.safetensors", "result.json"]:
        before, left = content(run.path), PAGE if name.endswith(("t", "rs")) else 0  # weights: a short write
        with disk.full_at(name, left), pytest.raises(WriteError, match=full(run.path / name)):
            train_module.train(config, run_dir=run.path)
        after = content(run.path)
        assert not [each for each in after if each.endswith(".tmp")]
        assert after.get(name, b"") == before.get(name, b"")
        steps.append(torch.load(run.state, weights_only=True)["step"] if run.state.exists() else 0)
    assert steps == sorted(steps)
    result = train_module.train(config, run_dir=run.path)
    assert (run.last).read_bytes() == (tmp_path / "reference" / "last.safetensors").read_bytes()
    kept = ("epoch", "step", "lr", "loss", "val_miou")
    rows, expected = ([{key: row[key] for key in kept} for row in each.history] for each in (result, reference))
    assert rows == expected
    with disk.read_only():
        for start in (lambda: train_module.train(config.replace(seed=1), results=disk.path / "results"),
                      lambda: train_module.train(config, run_dir=run.path)):  # fmt: skip
            with (
                mock.patch.object(train_module, "open_splits", side_effect=AssertionError("the audit has begun")),
                pytest.raises(WriteError, match=rf"{disk.path}/results.*\(Read-only file system\).*S2FPN_RESULTS"),
            ):
                start()
        assert load_model(run.path).metadata["epoch"] == 1, "a folder that is only read"


def test_a_lock_needs_no_room(disk):
    run = RunDirectory(disk.path / "run")
    with run.lock():
        pass
    disk.fill()
    with run.lock(), pytest.raises(runs.RunLocked, match="in use"), RunDirectory(disk.path / "run").lock():
        pass


class Pointwise(nn.Module):
    """What the exports need of a network."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 11, 1)
        self.mean, self.std = torch.zeros(3), torch.ones(3)

    def forward(self, x):
        return self.convolution(x)


@functools.cache
def onnx_program():
    return torch.onnx.export(Pointwise().eval(), (torch.zeros(1, 3, 8, 8),), dynamo=True, verbose=False)


def export_to_onnx(folder):
    program = onnx_program()  # takes seconds
    with mock.patch.object(torch.onnx, "export", return_value=program):
        export_onnx(Pointwise(), folder / "a.onnx", torch.zeros(1, 3, 8, 8), dynamic=False)


def figure():
    from matplotlib.figure import Figure

    drawn = Figure()
    drawn.subplots().plot([1, 2])
    return drawn


def write_video(folder):
    pytest.importorskip("av")
    frames = [folder.parents[1] / "frames" / f"{number}.png" for number in range(3)]
    for frame in frames:
        media.write_png(frame, np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    media.write_video(folder / "video.mp4", frames, Fraction(25))


def write_parquet(folder):
    frame = pd.DataFrame({"a": ["1"]})
    with mock.patch.multiple(collect, results_table=lambda *_: frame, class_table=lambda *_: frame):
        collect.write_results(folder)


def report(folder):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text) for text in ("a", "# Report")])
    source = folder.parents[1] / "90_report.ipynb"
    nbformat.write(notebook, source)
    run_notebook.export_html(source, folder / "report.html")


def predict_pictures(folder):
    for name in "ab":
        media.write_png(folder.parents[1] / "in" / f"{name}.png", np.full((40, 50, 3), 90, np.uint8))
    predict(network(), folder.parents[1] / "in", folder, PROTOCOL, size=(32, 32), overwrite=True)


WRITERS = {
    "evaluation": lambda folder: evaluation(1).save(folder / "evaluation.json"),
    "figure": lambda folder: save_figure(figure(), folder / "figure"),
    "tables": lambda folder: TableFolder(folder).save("scores", pd.DataFrame({"a": [1]}), "Scores"),
    "results as Parquet and CSV": write_parquet,
    "samples": lambda folder: comparison.save_samples(folder, network(), Scenes("val"), [0]),
    "report": report,
    "inspection": lambda folder: export.save_inspection(folder, State(y=20, x=30), [inspection()]),
    "inspector page": lambda folder: export.export_html(folder / "page.html", State(y=20, x=30), [inspection()]),
    "prediction": predict_pictures,
    "video": write_video,
    "network to share": lambda folder: network().save_pretrained(folder),
    "ONNX": export_to_onnx,
    "torch.export": lambda folder: export_program(Pointwise(), folder / "a.pt2", torch.zeros(1, 3, 70, 80)),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_leaves_earlier_files_as_they_are(disk, kind):
    folder, write = disk.path / "out", WRITERS[kind]
    folder.mkdir()
    disk.fill()
    with pytest.raises(WriteError, match=full(f"{folder}/.*")):
        write(folder)
    assert content(folder) == {}
    disk.make_room()
    write(folder)
    before = content(folder)
    assert before
    disk.fill()
    with pytest.raises(WriteError, match=full(f"{folder}/.*")):
        write(folder)
    assert content(folder) == before


def test_a_prediction_continues_once_there_is_room(disk, tmp_path):
    for name in "abc":
        media.write_png(tmp_path / "in" / f"{name}.png", np.full((40, 50, 3), 90, np.uint8))

    def run():
        report = predict(network(), tmp_path / "in", disk.path / "out", PROTOCOL, size=(32, 32))
        return report.predicted, report.kept

    with disk.full_at("b.png"), pytest.raises(WriteError, match=full(f"{disk.path}/out/.*")):
        run()
    assert not list(disk.path.rglob(".*.tmp"))
    assert run() == (2, 1)
    assert run() == (0, 3)


def own_data(folder: Path) -> Path:
    """Four pairs to train and two to validate, described in a YAML file, whose path is returned."""
    rng = np.random.default_rng(0)
    for split, number in (("train", 4), ("val", 2)):
        for n in range(number):
            media.write_png(folder / "images" / split / f"{n}.png", rng.integers(0, 256, (32, 48, 3), np.uint8))
            media.write_png(folder / "masks" / split / f"{n}.png", rng.integers(0, 2, (32, 48), np.uint8))
    splits = "".join(f"  {s}: {{images: images/{s}, labels: masks/{s}}}\n" for s in ("train", "val"))
    described = folder / "data.yaml"
    described.write_text(f"name: yard\nclasses: [floor, rack]\nsize: [32, 48]\nsplits:\n{splits}")
    return described


@pytest.fixture
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("S2FPN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def same_batches(found, expected):
    return all(torch.equal(a, b) for pair in zip(found, expected, strict=True) for a, b in zip(*pair, strict=True))


def test_read_only_data_are_enough(disk, cache_folder):
    described = own_data(disk.path / "data")
    before = content(disk.path)
    with disk.read_only():
        dataset = open_dataset(described, split="train")
        assert isinstance(dataset, CachedDataset)
        expected = open_dataset(described, split="train", cache=False)
        assert all(
            torch.equal(a, b) for index in range(4) for a, b in zip(dataset[index], expected[index], strict=True)
        )
    assert content(disk.path) == before


@pytest.mark.filterwarnings("ignore:.*the cache is damaged")
def test_a_full_or_read_only_cache(disk, tmp_path, monkeypatch):
    described = own_data(tmp_path / "data")
    monkeypatch.setenv("S2FPN_CACHE", str(disk.path / "cache"))
    (disk.path / "cache").mkdir()
    with (
        disk.full_at("index.json", 2 * PAGE),
        pytest.raises(CacheSpaceError, match=r"GB free\. Make room, set S2FPN_CACHE"),
    ):
        open_dataset(described, split="train")
    assert not [path for path in content(disk.path) if not path.endswith("index.json")]
    monkeypatch.setattr("s2fpn_lib.data.cache.shutil.disk_usage", lambda _: mock.Mock(free=10**12))
    with disk.full_at("index.json", 2 * PAGE), pytest.raises(CacheSpaceError):  # noticed while it is written
        open_dataset(described, split="train")
    assert not [path for path in content(disk.path) if not path.endswith("index.json")]
    dataset = open_dataset(described, split="train")
    assert isinstance(dataset, CachedDataset)
    expected = [dataset[index] for index in range(4)]
    next((disk.path / "cache").rglob("*.bin")).unlink()
    disk.fill()  # under a running training: decoded, not written
    with pytest.warns(UserWarning, match="decoded"):
        assert same_batches([dataset[index] for index in range(4)], expected)
    disk.make_room()
    shutil.rmtree(disk.path / "cache")
    with disk.read_only(), pytest.warns(UserWarning, match=r"S2FPN_CACHE.*Decoding on every access"):
        decoded = open_dataset(described, split="train")
    assert isinstance(decoded, DecodedDataset)
    assert decoded.digest() == dataset.digest()
    assert same_batches([decoded[index] for index in range(4)], expected)
    image = described.parent / "images" / "train" / "2.png"
    media.write_png(image, np.zeros((32, 48, 3), np.uint8))  # under a running training
    assert torch.equal(decoded[1][0], expected[1][0])
    with pytest.raises(DatasetError, match=r"2\.png.*the data changed while in use"):
        decoded[2]


def flipped(file):
    data, stat = bytearray(file.read_bytes()), file.stat()
    data[-1] ^= 1
    with file.open("r+b") as opened:
        opened.write(data)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # the time of the change of the inode still tells


INCIDENTS = {
    "a bit flipped in place": lambda folder, files: flipped(files[0]),
    "cut short": lambda folder, files: os.truncate(files[0], files[0].stat().st_size - 100),
    "empty": lambda folder, files: os.truncate(files[0], 0),
    "file of another sample": lambda folder, files: shutil.copyfile(files[1], files[0]),
    "file of another split": lambda folder, files: shutil.copyfile(next(folder.rglob("*-val-*/*.bin")), files[0]),
    "one file deleted": lambda folder, files: files[0].unlink(),
    "index damaged": lambda folder, files: next(folder.rglob("*-train-*/index.json")).write_text("[3"),
    "all deleted": lambda folder, files: shutil.rmtree(folder),
}


@pytest.mark.filterwarnings("ignore:.*the cache is damaged")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_cache_changed_under_a_running_training_gives_the_same_batches(tmp_path, cache_folder, workers):
    described = own_data(tmp_path / "data")
    options = {"crop": (32, 48), "batch_size": 2, "seed": 0}
    plain = train_loader(open_dataset(described, split="train", cache=False), **options)
    expected = [list(plain) for _ in range(2 * len(INCIDENTS) + 1)]
    open_dataset(described, split="val")
    dataset = open_dataset(described, split="train")
    loader, epochs = train_loader(dataset, workers=workers, **options), iter(expected)
    assert same_batches(loader, next(epochs))
    for incident in INCIDENTS.values():
        incident(cache_folder, dataset.files)
        assert same_batches(loader, next(epochs))
        assert same_batches(loader, next(epochs)), "with what was repaired"
    assert content(cache_folder).keys() >= {str(file.relative_to(cache_folder)) for file in dataset.files}


class SerialPool(contextlib.nullcontext):
    def __enter__(self):
        return self

    map = staticmethod(map)


def build_slowly(described, started):
    """The first file is written, and the second one never ends."""
    sync, calls = os.fsync, itertools.count()

    def slow(descriptor):
        sync(descriptor)
        if next(calls) == 4:  # after the index and its folder, and a file and its folder
            started.set()
            time.sleep(600)

    with mock.patch.object(os, "fsync", slow), mock.patch("s2fpn_lib.data.cache.ThreadPoolExecutor", SerialPool):
        open_dataset(described, split="train")


def test_a_builder_is_killed_while_another_one_goes_on(tmp_path, cache_folder):
    described = own_data(tmp_path / "data")
    context = multiprocessing.get_context("fork")
    started = context.Event()
    killed = context.Process(target=build_slowly, args=(described, started), daemon=True)
    killed.start()
    assert started.wait(60)
    (half,) = cache_folder.rglob(".*.tmp")
    assert len(list(cache_folder.rglob("*.bin"))) == 1
    expected = open_dataset(described, split="train", cache=False)

    def build():
        dataset = open_dataset(described, split="train")
        assert isinstance(dataset, CachedDataset)
        assert same_batches([dataset[index] for index in range(4)], [expected[index] for index in range(4)])

    build()
    assert half.exists(), "a living process writes it"
    os.kill(killed.pid, signal.SIGKILL)
    killed.join(60)
    build()
    assert not half.exists()
    assert len(content(cache_folder)) == 5, "four samples and the index"


def test_leftovers_are_removed_unless_a_process_writes_them(tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / ".last.pt.17.tmp").write_text("half")
    (tmp_path / "own.tmp").write_text("of somebody else")
    with atomic_file(tmp_path / "more" / "last.pt") as file:
        file.write(b"whole")
        runs.remove_leftovers(tmp_path)
    assert content(tmp_path) == {"more/last.pt": b"whole", "own.tmp": b"of somebody else"}


def test_a_clock_that_is_set_back_hides_no_change_from_the_cache(tmp_path, cache_folder, monkeypatch):
    described = own_data(tmp_path / "data")
    image = described.parent / "images" / "train" / "2.png"
    future = time.time() + 1e8
    for path in described.parent.rglob("*.png"):
        os.utime(path, (future, future))
    first = open_dataset(described, split="train")[2][0]
    for shift, value in ((0, 1), (-(10**16), 2), (-2 * 10**16, 3)):
        now = time.time_ns() + shift
        media.write_png(image, np.full((32, 48, 3), value, np.uint8))
        os.utime(image, ns=(now, now))
        monkeypatch.setattr(time, "time_ns", lambda now=now: now)
        again = open_dataset(described, split="train")[2][0]
        assert (again == value).all()
        assert not torch.equal(again, first)


def test_predictions_belong_to_the_content_of_their_source(tmp_path):
    picture, out = tmp_path / "in" / "a.png", tmp_path / "out"

    def run(value=None, changed=0):
        if value is not None:
            media.write_png(picture, np.full((40, 50, 3), value, np.uint8))
        os.utime(picture, (changed, changed))
        return predict(network(), picture, out, PROTOCOL, size=(32, 32)).predicted

    assert run(90) == 1
    assert run(changed=time.time() + 1e8) == 0, "newer than its result, with the same content"
    assert run(10, changed=1) == 1, "older than its result, with other content"
    assert run() == 0
    (out / "areas.csv").unlink()  # of a call that was killed
    assert run() == 0


def test_the_newest_run_is_not_one_from_the_future(tmp_path):
    for number, name in enumerate(("first", "second", "third")):
        training_run(tmp_path / name)
        (tmp_path / name / "best.safetensors").touch()
        changed = time.time() - 1000 + number
        os.utime(tmp_path / name / "result.json", (changed, changed))
    assert newest_run(tmp_path).name == "third"
    future = time.time() + 1e6
    os.utime(tmp_path / "first" / "result.json", (future, future))
    assert newest_run(tmp_path).name == "third"


def test_read_only_results_end_every_command_at_once(disk, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("S2FPN_RESULTS", str(disk.path / "results"))
    media.write_png(tmp_path / "in" / "a.png", np.full((40, 50, 3), 90, np.uint8))
    message = rf"could not write {disk.path}.* \(Read-only file system\).*S2FPN_RESULTS"
    commands = [
        lambda: runs.results_folder("", "11_evaluate"),
        lambda: predict(network(), tmp_path / "in", disk.path / "out", PROTOCOL, size=(32, 32)),
        lambda: evaluation(1).save(disk.path / "evaluation.json"),
        lambda: append_row(disk.path / "speed.jsonl", {"fps": 1.0}),
        lambda: save_figure(figure(), disk.path / "figure"),
        lambda: write_atomic(disk.path / "new" / "a.csv", ""),
    ]
    programs = [
        lambda: pipeline.main(["MAX_EPOCHS=1"]),
        lambda: run_notebook.main(["10_train", str(disk.path / "results" / "job")]),
    ]
    with disk.read_only(), mock.patch("papermill.execute_notebook", side_effect=AssertionError("it has begun")):
        for command in commands:
            with pytest.raises(WriteError, match=message):
                command()
        for program in programs:
            with pytest.raises(SystemExit, match=message):
                program()
    assert content(disk.path) == {}


def test_a_full_disk_under_papermill(disk, monkeypatch):
    """papermill writes the notebook after each cell; what it left is not taken for a finished one."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 + 1")])
    source = disk.path / "source.ipynb"
    nbformat.write(notebook, source)

    def execute(source, target, **_):
        disk.fill()
        Path(target).write_text("x" * 100_000)

    with monkeypatch.context() as patch:
        patch.setattr("papermill.execute_notebook", execute)
        with pytest.raises(run_notebook.NotebookError, match=full(disk.path / "job" / "source.ipynb")):
            run_notebook.run_notebook(source, disk.path / "job", {})
    assert not (disk.path / "job" / "done.json").exists()
    assert not (disk.path / "job" / "source.ipynb").exists()
    disk.make_room()
    monkeypatch.setattr("papermill.execute_notebook", lambda source, target, **_: shutil.copyfile(source, target))
    run_notebook.run_notebook(source, disk.path / "job", {})
    assert (disk.path / "job" / "done.json").exists()
    assert nbformat.read(disk.path / "job" / "source.ipynb", 4) == notebook
