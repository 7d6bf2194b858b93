"""Kills a study between two notebooks, repeatedly, and compares it with an uninterrupted one. Not part of the tests.

    python scripts/kill_study.py --kills 16 --log results/reliability/studies.txt

Snakemake's process group gets SIGKILL when the first of two notebooks is done: at once, or while the next one starts.
Every second time its kernels, which run in sessions of their own, get it as well, as when the machine goes down; the
other times the kernels must notice it themselves. After each kill the finished run must be intact and no file may be
torn, and the same command must finish the study with the weights and scores of an uninterrupted one, bit for bit. If
mounting is allowed, the script also tries a full disk and a read-only disk; it also starts two studies at once. The
exit status is 0 if all of this holds. `scripts/kill_runs.py` kills trainings.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import torch
from safetensors.torch import load_file

from s2fpn_lib.checkpoint import load_state
from s2fpn_lib.runs import PROJECT, read_json, read_rows

SNAKEMAKE = Path(sys.executable).parent / "snakemake"
# Fields in which two runs of one recipe may differ: times, and the commit of a checkout that is edited
TIMES = ("seconds", "images_per_s", "data_s", "step_s", "git_sha")


class Log:
    """Prints lines with their time and appends them to a file."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("w")

    def __call__(self, text: str) -> None:
        line = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}  {text}"
        print(line, flush=True)
        self.file.write(line + "\n")
        self.file.flush()


def start(results: Path, seeds: int, output: Path, cores: int = 2) -> subprocess.Popen:
    """Starts the study `tiny` in a process group of its own and appends its output to `output`."""
    one_notebook_per_seed = [f"seeds={list(range(seeds))}", "variants={full: {}}"]
    command = [SNAKEMAKE, "tiny", "--cores", str(cores), "--config", *one_notebook_per_seed]
    with output.open("a") as file:
        return subprocess.Popen(
            command,
            cwd=PROJECT,
            env={**os.environ, "S2FPN_RESULTS": str(results)},
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


def run(results: Path, seeds: int, output: Path) -> int:
    return start(results, seeds, output).wait()


def descendants(pid: int) -> list[int]:
    """All descendant processes of `pid`."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # ended meanwhile
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found, new = [], [pid]
    while new:
        new = [child for child, parent in parents.items() if parent in new]
        found += new
    return found


def kill(process: subprocess.Popen, *, kernels: bool) -> int:
    """Kills the process group, and with `kernels` all descendants; returns the number of processes."""
    others = descendants(process.pid)
    os.killpg(process.pid, signal.SIGKILL)
    for pid in others if kernels else []:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    return 1 + len(others)


def folders(results: Path) -> dict[str, Path]:
    return {path.name: path for path in sorted((results / "studies" / "tiny").glob("*")) if path.is_dir()}


def finished(results: Path) -> dict[Path, bytes]:
    """The result files of all finished runs, with their contents."""
    names = ("result.json", "last.safetensors", "best.safetensors")
    runs = [path / "run" for path in folders(results).values() if (path / "run" / "result.json").exists()]
    return {run / name: (run / name).read_bytes() for run in runs for name in names}


def damaged(results: Path) -> list[str]:
    """Files that cannot be read; previous.pt may hold a training state that was being replaced."""
    found = []
    for folder in folders(results).values():
        for path in folder.rglob("*.json"):
            try:
                read_json(path)
            except ValueError as error:
                found.append(str(error))
        try:
            read_rows(folder / "run" / "metrics.jsonl")
            if (folder / "run" / "last.pt").exists():
                load_state(folder / "run" / "last.pt")
        except Exception as error:
            found.append(f"{folder.name}: {error}")
    return found


def progress(results: Path) -> str:
    """The number of steps of each run so far, or "done"."""
    words = []
    for folder in folders(results).values():
        state = load_state(folder / "run" / "last.pt") if (folder / "run" / "last.pt").exists() else None
        done = (folder / "done.json").exists()
        words.append("done" if done else f"step {state['step']}" if state else "begun")
    return ", ".join(words) or "nothing yet"


def differences(ours: Path, reference: Path) -> list[str]:
    """The differences between two finished studies of the same seeds."""
    found = []
    if set(folders(ours)) != set(folders(reference)):
        return [f"folders {sorted(folders(ours))} and {sorted(folders(reference))}"]
    for name, folder in folders(ours).items():
        other = folders(reference)[name]
        for file in ("last.safetensors", "best.safetensors"):
            a, b = load_file(folder / "run" / file), load_file(other / "run" / file)
            if a.keys() != b.keys() or not all(torch.equal(a[key], b[key]) for key in a):
                found.append(f"{name}: {file} has other weights")
        for what, rows in {
            "result.json": [[read_json(each / "run" / "result.json")] for each in (folder, other)],
            "metrics.jsonl": [read_rows(each / "run" / "metrics.jsonl") for each in (folder, other)],
        }.items():
            a, b = ([{k: v for k, v in row.items() if k not in TIMES} for row in side] for side in rows)
            if a != b:
                found.append(f"{name}: {what} {a} instead of {b}")
        a, b = (json.loads((each / "evaluation.json").read_text()) for each in (folder, other))
        if a["matrix"] != b["matrix"]:
            found.append(f"{name}: another confusion matrix")
        left = [
            path.name for path in folder.rglob("*") if path.name.endswith((".tmp", ".pt")) or "failure" in path.name
        ]
        if left:
            found.append(f"{name}: left over {left}")
    return found


def killed_between(log: Log, work: Path, number: int) -> list[str]:
    """Kills a study of two notebooks after the first one, and lets it finish; returns what went wrong."""
    results, output = work / f"killed-{number}", work / "killed.log"
    process = start(results, 2, output, cores=1)
    while not any(results.glob("studies/tiny/*/done.json")) and process.poll() is None:
        time.sleep(0.02)
    delay = number % 8 / 2  # seconds: at the end of one notebook, or at the start of the next
    time.sleep(delay)
    processes = kill(process, kernels=number % 2 == 1)
    before, faults = finished(results), damaged(results)
    how = "all processes" if number % 2 else "process group"
    log(f"kill {number + 1:2d} ({how}, {processes} running), {delay:.1f} s after a notebook: {progress(results)}")
    if status := start(results, 2, output, cores=1).wait():
        faults.append(f"kill {number + 1}: the study ends with status {status}, see {output}")
    faults += [f"{path} was changed" for path, content in before.items() if path.read_bytes() != content]
    found = differences(results, work / "reference") if not status else []
    shutil.rmtree(results)
    return [*faults, *(f"kill {number + 1}: {each}" for each in found)]


def bad_disk(log: Log, work: Path) -> list[str] | None:
    """Runs the study on a disk that is too small and on a read-only one, and again after a repair.

    Returns None if mounting is not allowed here.
    """
    results, output = work / "disk", work / "disk.log"
    results.mkdir()

    def mount(options: str) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", options, "s2fpn-kill-study", results]
        return subprocess.run(command, capture_output=True).returncode == 0

    if not mount("size=40m"):
        return None
    faults = []
    try:
        for what, spoil, repair in (
            ("full disk", "remount,size=40m", "remount,size=900m"),
            ("read-only disk", "remount,ro", "remount,rw,size=900m"),
        ):
            seeds = 1 if what == "full disk" else 2
            before = finished(results)
            if not mount(spoil):
                faults.append(f"{what}: cannot be mounted with {spoil}")
            status = run(results, seeds, output)
            log(f"{what}: Snakemake ends with status {status} and says: {_told(output)}")
            if not status:
                faults.append(f"{what}: the study did not notice")
            faults += [
                f"{what}: {path} was changed" for path, content in before.items() if path.read_bytes() != content
            ]
            faults += damaged(results)
            mount(repair)
            status = run(results, seeds, output)
            log(f"{what}: repaired, the same command ends with status {status}: {progress(results)}")
            if status:
                faults.append(f"{what}: does not resume after the repair, see {output}")
        shutil.copytree(results, work / "disk-copy")
    finally:
        subprocess.run(["umount", results], check=True)
    return faults


def _told(output: Path) -> str:
    """The newest line of the output that names an error."""
    words = ("No space left", "Read-only file system")
    lines = [line.strip() for line in output.read_text().splitlines() if any(word in line for word in words)]
    return lines[-1][:200] if lines else "nothing about it"


def two_at_once(log: Log, work: Path) -> list[str]:
    """Starts two studies on one folder: one must run, the other must report it, and nothing may be lost."""
    results, outputs = work / "two", [work / "two-a.log", work / "two-b.log"]
    processes = [start(results, 2, output) for output in outputs]
    statuses = [process.wait() for process in processes]
    told = ["another study is running" in output.read_text() for output in outputs]
    log(f"two at once: statuses {statuses}, refused with a message: {told}")
    right = all(message == (status != 0) for status, message in zip(statuses, told, strict=True)) and 0 in statuses
    return [] if right else [f"two at once: statuses {statuses}, messages {told}"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=16)
    parser.add_argument("--log", type=Path, default=PROJECT / "results" / "reliability" / "studies.txt")
    given = parser.parse_args()
    log, faults = Log(given.log), []
    with tempfile.TemporaryDirectory(prefix="kill-study-") as folder:
        work = Path(folder)
        status = run(work / "reference", 2, work / "reference.log")
        log(f"a study of two notebooks, not interrupted: status {status}, {progress(work / 'reference')}")
        for number in range(given.kills):
            faults += killed_between(log, work, number)
        log(f"{given.kills} kills: {len(faults)} faults")
        found = bad_disk(log, work)
        log(
            "full and read-only disk: "
            + ("not tried, mounting is not permitted" if found is None else f"{len(found)} faults")
        )
        faults += found or []
        faults += two_at_once(log, work)
        for name in ("disk-copy", "two"):
            if (work / name).exists():
                part = [each for each in folders(work / "reference").values() if each.name in folders(work / name)]
                shutil.rmtree(work / "part", ignore_errors=True)
                for each in part:
                    shutil.copytree(each, work / "part" / "studies" / "tiny" / each.name)
                found = differences(work / name, work / "part")
                log(f"{name} against reference: {len(found)} differences in {len(part)} runs")
                faults += found
    for fault in faults:
        log(f"FAULT {fault}")
    log("no run was lost or damaged, all weights equal to the bit" if not faults else f"{len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
