"""Run directories, provenance, and atomic writes.

A run directory holds config.json, environment.json, metrics.jsonl, last.pt (and previous.pt), best.safetensors,
last.safetensors, and, once the run is finished, result.json.
"""

import hashlib
import json
import os
import platform
import re
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from s2fpn_lib.runs.files import (
    WriteError,
    append_row,
    atomic_file,
    locked,
    naming,
    read_json,
    read_rows,
    remove_leftovers,
    require_writable,
    write_atomic,
    write_json,
    written_order,
)

PROJECT = Path(__file__).resolve().parents[2]
INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8")  # decide how fast a CPU convolves


class ConfigChanged(ValueError):
    """The run directory belongs to a run with another configuration or on other data; the message names both."""


class RunLocked(RuntimeError):
    """Another process trains in this run directory."""


def results_root() -> Path:
    """Folder that holds all results: environment variable S2FPN_RESULTS, else the project's `results`."""
    return Path(os.environ.get("S2FPN_RESULTS") or PROJECT / "results").expanduser()


def results_folder(results: str | Path, name: str) -> Path:
    """Folder `name` under `results` (empty: `results_root()`), created if missing; WriteError if it is not writable."""
    folder = Path(results or results_root()).expanduser() / name
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
    require_writable(folder)
    remove_leftovers(folder)
    return folder


def config_hash(config: Mapping[str, Any]) -> str:
    """12 hex digits of the SHA-256 of a configuration's JSON with sorted keys."""
    canonical = json.dumps(config, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


class RunDirectory:
    """File names, lock, and provenance of one run's folder, which is created on first use."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.environment = self.path / "environment.json"
        self.metrics = self.path / "metrics.jsonl"
        self.state = self.path / "last.pt"
        self.best = self.path / "best.safetensors"
        self.last = self.path / "last.safetensors"
        self.result = self.path / "result.json"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Locks the directory against other processes until the block ends; RunLocked if another process holds it.

        The kernel releases the lock however this process ends; forked loader workers do not keep it.
        """
        path = (self.path / "lock").resolve()
        if path in _held_here:  # a POSIX lock does not exclude its own process, and would be lost by opening the file
            raise RunLocked(f"{self.path} is already in use by this process")
        with naming(self.path / "lock"):
            self.path.mkdir(parents=True, exist_ok=True)
            opened = path.open("a+")
        with opened as file, ExitStack() as held:
            try:
                held.enter_context(locked(file, wait=False))
            except OSError as error:
                file.seek(0)
                raise RunLocked(
                    f"{self.path} is in use by {file.read().strip() or 'another process'}: "
                    "wait for it, stop it, or choose another run_dir"
                ) from error
            _held_here.add(path)
            held.callback(_held_here.discard, path)
            file.truncate(0)
            with suppress(OSError):  # the lock itself needs no room on the disk
                os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()} since {utc_now()}\n".encode())
            remove_leftovers(self.path)
            yield

    def claim(
        self, recipe: Mapping[str, Any], defaults: Mapping[str, Any], data: Mapping[str, str] | None = None
    ) -> None:
        """Writes config.json, or checks that the one that exists holds the same recipe and data, else ConfigChanged.

        Fields that an older version did not store count as their defaults; a run without data gets them. data:
        {"train": digest, "val": digest} of the splits, see `SegmentationDataset.digest`.
        """
        if not self.config.exists():
            write_json(self.config, {**recipe, "data": data} if data else recipe)
            return
        written = read_json(self.config)
        known = written.pop("data", None)
        stored = {**defaults, **written}
        changed = [name for name in {**recipe, **stored} if stored.get(name) != recipe.get(name)]
        if changed:
            differences = ", ".join(f"{name} {stored.get(name)!r} -> {recipe.get(name)!r}" for name in changed)
            raise ConfigChanged(
                f"{self.path} holds a run with another configuration ({differences}): "
                "choose another run_dir, or delete that one"
            )
        if data and known is None:
            print(f"{self.path} does not record its data (an earlier version): taken as trained on the present files")
            write_json(self.config, {**written, "data": data})
        elif data and known != data:
            differences = ", ".join(f"{split} {old} -> {data.get(split)}" for split, old in known.items())
            raise ConfigChanged(
                f"{self.path} holds a run on other data (digests: {differences}): files were changed, or the folder of "
                "the dataset is another one. Choose another run_dir, delete that one, or restore the files"
            )

    def identity(self) -> str:
        """Hash of the recipe and the data that config.json holds; empty without one."""
        return config_hash(read_json(self.config)) if self.config.exists() else ""

    def record_environment(self, environment: Mapping[str, Any]) -> None:
        """Writes environment.json and moves the records of earlier starts into its list `earlier_starts`."""
        earlier: list[Any] = []
        if self.environment.exists():
            previous = read_json(self.environment)
            earlier = [*previous.pop("earlier_starts", []), previous]
        write_json(self.environment, {**environment, "earlier_starts": earlier})

    def drop_metrics_after(self, epoch: int) -> None:
        """Removes the rows after `epoch`, which a resumed run will write again."""
        rows = read_rows(self.metrics)
        if not all(isinstance(row.get("epoch"), int) for row in rows):
            raise ValueError(f"{self.metrics} has a line without the number of its epoch: repair or delete that line")
        kept = [row for row in rows if row["epoch"] <= epoch]
        if len(kept) < len(rows):
            write_atomic(self.metrics, "".join(json.dumps(row) + "\n" for row in kept))


_held_here: set[Path] = set()


def environment() -> dict[str, Any]:
    """Versions, hardware, threads, code version, and time (UTC): what a result depends on besides its configuration."""
    import torch  # here, because a process that only starts others needs no torch

    cuda = torch.cuda.is_available()
    info, limit = Path("/proc/cpuinfo"), os.environ.get("ONEDNN_MAX_CPU_ISA")  # of eager, compile, and openvino
    text = info.read_text() if info.exists() else ""
    processor = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)  # `platform.processor` lacks it on Linux
    words = text.split()
    flags = [flag for flag in INSTRUCTION_SETS if flag in words] or [torch.backends.cpu.get_cpu_capability()]
    return {
        "time": utc_now(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),  # its import takes over a second
        "cuda": torch.version.cuda if cuda else None,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "cpu": processor[1] if processor else platform.processor() or platform.machine(),
        "instruction_set": " ".join(flags) + (f", limited to {limit}" if limit else ""),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] if cuda else [],
        **code_version(),
    }


def code_version(project: Path = PROJECT) -> dict[str, Any]:
    """{"git_sha", "dirty"} of the project folder; None without git and where it is not the root of a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(project), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    with suppress(OSError, subprocess.SubprocessError):  # no git, no repository, or no commit
        root, sha = git("rev-parse", "--show-toplevel", "HEAD").splitlines()
        if Path(root).resolve() == project.resolve():
            return {"git_sha": sha, "dirty": bool(git("status", "--porcelain"))}
    return {"git_sha": None, "dirty": None}


def utc_now() -> str:
    """The time in UTC, to the second, in ISO format."""
    return datetime.now(UTC).isoformat(timespec="seconds")
