"""Where results live and how they get there: run directories, provenance, writes that a crash cannot tear.

A run directory holds config.json, environment.json, metrics.jsonl, last.pt (and previous.pt), best.safetensors,
last.safetensors and, once the run is finished, result.json.
"""

import csv
import fcntl
import hashlib
import io
import json
import os
import platform
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torchvision

PROJECT = Path(__file__).resolve().parent.parent


class ConfigChanged(ValueError):
    """The run directory belongs to a run with another configuration; the message names the fields."""


class RunLocked(RuntimeError):
    """Another live process trains in this run directory."""


def results_root() -> Path:
    """Folder that holds all results: environment variable S2FPN_RESULTS, else the project's `results`."""
    return Path(os.environ.get("S2FPN_RESULTS") or PROJECT / "results").expanduser()


def results_folder(results: str | Path, name: str) -> Path:
    """Folder `name` under `results` (empty: `results_root()`), created where missing: where a notebook keeps files."""
    folder = Path(results or results_root()).expanduser() / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def config_hash(config: Mapping[str, Any]) -> str:
    """12 hex digits that name a configuration: SHA-256 of its canonical JSON, independent of key order."""
    canonical = json.dumps(config, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


@contextmanager
def atomic_file(path: str | Path) -> Iterator[io.BufferedWriter]:
    """Binary file that appears under `path` complete or not at all.

    Written to a temporary file in the same folder, synced to the disk, then renamed over `path`. On any error (disk
    full, interrupt) the temporary file goes and what was under `path` stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_atomic(path: str | Path, data: bytes | str) -> None:
    """Replaces the contents of `path` by `data` (text as UTF-8), completely or not at all."""
    with atomic_file(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def write_json(path: str | Path, value: Any) -> None:
    """`write_atomic` of indented JSON."""
    write_atomic(path, json.dumps(value, indent=2) + "\n")


def read_json(path: str | Path) -> Any:
    """The value in a JSON file; a ValueError that names the file where it is damaged."""
    try:
        return json.loads(Path(path).read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): restore it, or delete its folder to start again") from error


def append_row(path: str | Path, row: Mapping[str, Any]) -> None:
    """Appends one row to a `.jsonl` or `.csv` file; several processes may append to the same file.

    A last line that a crash left unfinished is dropped first, so it can neither hide the new row nor be glued to it.

    Raises:
        ValueError: another suffix, or a CSV row whose columns are not the file's (the message names them).
    """
    path = Path(path)
    if path.suffix not in (".jsonl", ".csv"):
        raise ValueError(f"{path}: rows go to a .jsonl or .csv file")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        _drop_torn_line(file)
        if path.suffix == ".jsonl":
            line = json.dumps(row) + "\n"
        else:
            file.seek(0)
            header = next(csv.reader([file.readline().decode()]), [])
            line = _csv_lines(path, header, row)
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a `.jsonl` file, oldest first; empty where there is no file. A torn last line is left out.

    Raises:
        ValueError: a complete line is no JSON; the message names file and line.
    """
    path = Path(path)
    if not path.exists():
        return []
    complete = path.read_bytes().rpartition(b"\n")[0]
    rows = []
    for number, line in enumerate(complete.splitlines(), start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path} line {number} is no JSON ({error}); repair or delete that line") from error
    return rows


class RunDirectory:
    """One run's folder: its file names, its lock, its provenance. Created on first use."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.environment = self.path / "environment.json"
        self.metrics = self.path / "metrics.jsonl"
        self.state = self.path / "last.pt"
        self.best = self.path / "best.safetensors"
        self.last = self.path / "last.safetensors"
        self.result = self.path / "result.json"

    def __repr__(self) -> str:
        return f"RunDirectory({str(self.path)!r})"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the directory against every other process until the block ends or this process dies.

        The lock belongs to the process, not to the file: the kernel drops it however the holder ends, so there is no
        stale lock to clean up, and forked loader workers do not keep it alive.

        Raises:
            RunLocked: another process holds it; the message says which.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        path = (self.path / "lock").resolve()
        if path in _held_here:  # a POSIX lock does not exclude its own process, and would be lost by opening the file
            raise RunLocked(f"{self.path} is already being trained in by this process")
        with path.open("a+") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                file.seek(0)
                raise RunLocked(
                    f"{self.path} is being trained in by {file.read().strip() or 'another process'}: "
                    "wait for it, stop it, or choose another run_dir"
                ) from error
            _held_here.add(path)
            try:
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()} since {_now()}\n")
                file.flush()
                for leftover in self.path.glob(".*.tmp"):  # of a process that was killed while writing
                    leftover.unlink()
                yield
            finally:
                _held_here.discard(path)

    def claim(self, recipe: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        """Writes config.json, or checks that the run that is here has the same recipe.

        A field that a stored recipe does not know yet counts as its default. Raises `ConfigChanged` otherwise.
        """
        if not self.config.exists():
            write_json(self.config, recipe)
            return
        stored = {**defaults, **read_json(self.config)}
        changed = [name for name in {**recipe, **stored} if stored.get(name) != recipe.get(name)]
        if changed:
            differences = ", ".join(f"{name} {stored.get(name)!r} -> {recipe.get(name)!r}" for name in changed)
            raise ConfigChanged(
                f"{self.path} holds a run with another configuration ({differences}): "
                "choose another run_dir, or delete that one"
            )

    def record_environment(self, environment: Mapping[str, Any]) -> None:
        """Writes environment.json; what earlier starts of this run recorded moves into its `earlier_starts` list."""
        earlier: list[Any] = []
        if self.environment.exists():
            previous = read_json(self.environment)
            earlier = [*previous.pop("earlier_starts", []), previous]
        write_json(self.environment, {**environment, "earlier_starts": earlier})

    def drop_metrics_after(self, epoch: int) -> None:
        """Forgets the rows after `epoch`, which a resumed run is about to write again."""
        rows = read_rows(self.metrics)
        kept = [row for row in rows if row["epoch"] <= epoch]
        if len(kept) < len(rows):
            write_atomic(self.metrics, "".join(json.dumps(row) + "\n" for row in kept))


_held_here: set[Path] = set()


def environment() -> dict[str, Any]:
    """What a result depends on besides its configuration: versions, hardware, threads, code version, time (UTC)."""
    cuda = torch.cuda.is_available()
    return {
        "time": _now(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] if cuda else [],
        **code_version(),
    }


def code_version(project: Path = PROJECT) -> dict[str, Any]:
    """{"git_sha", "dirty"} of the project folder; both None without git, or where the folder is no checkout's root
    (an installed copy inside somebody else's repository must not borrow that one's SHA)."""
    try:
        if Path(_git(project, "rev-parse", "--show-toplevel")).resolve() != project.resolve():
            raise FileNotFoundError
        return {"git_sha": _git(project, "rev-parse", "HEAD"), "dirty": bool(_git(project, "status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return {"git_sha": None, "dirty": None}


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # no Linux
    return platform.processor() or platform.machine()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _drop_torn_line(file: io.BufferedRandom) -> None:
    """Cuts an append-mode file back to its last newline."""
    end = file.seek(0, os.SEEK_END)
    if not end:
        return
    file.seek(end - 1)
    if file.read(1) != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


def _csv_lines(path: Path, header: list[str], row: Mapping[str, Any]) -> str:
    """The CSV text of `row`, with the header line before it where the file has none yet."""
    if header and set(header) != set(row):
        extra, missing = sorted(set(row) - set(header)), sorted(set(header) - set(row))
        raise ValueError(f"{path} has other columns than the row: row only {extra}, file only {missing}")
    text = io.StringIO()
    writer = csv.DictWriter(text, header or list(row), lineterminator="\n")
    if not header:
        writer.writeheader()
    writer.writerow(row)
    return text.getvalue()


def _sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
