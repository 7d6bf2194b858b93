"""What is worth doing on a GPU that is at hand for a few minutes, unattended:

    python -m s2fpn_lib.benchmark.gpu --minutes 9 --out results/gpu --data data

Parts: "right" (the tests marked cuda), "fast" (`benchmark.ways`: times), "train" (`benchmark.timed_training`), and
"summary" (a page). The first three do the most telling first, and each row is in a file of `--out` as soon as it is
known. A part has a process of its own that ends with its share of the minutes; what a part leaves unused goes to the
next ones. A task that fails is recorded in tasks.jsonl, and the part goes on, in a new process where the error has
broken the GPU's context.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import zipfile
from pathlib import Path

import torch

from s2fpn_lib.benchmark import timed_training, ways
from s2fpn_lib.benchmark.summary import write_page
from s2fpn_lib.runs import PROJECT, append_row, environment, read_rows

TASKS = {"fast": ways.tasks, "train": timed_training.tasks}
SHARES = {"right": 2.0, "fast": 3.0, "train": 4.0}  # of the minutes
NAMES = (*SHARES, "summary")
BROKEN = 77  # exit status of a process whose GPU no longer answers
RESERVE = 10.0  # seconds of the budget for the start and the end


def main(arguments: list[str] | None = None) -> None:
    """The command: divides the minutes between the parts."""
    started = time.monotonic() - own_age()
    parser = argparse.ArgumentParser(prog="python -m s2fpn_lib.benchmark.gpu", description="Use a GPU for some minutes")
    parser.add_argument("--minutes", type=float, default=9.0, help="budget of all parts together")
    parser.add_argument("--out", type=Path, default=Path("results/gpu"), help="folder of the results")
    parser.add_argument("--data", type=Path, help="folder that holds camvid/, or its archives; else RoadScenes")
    parser.add_argument("--parts", nargs="+", choices=NAMES, default=NAMES, help="what to do; default: everything")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda or cpu")
    options = parser.parse_args(arguments)
    stop = threading.Timer(60 * options.minutes - (time.monotonic() - started), os._exit, (1,))
    stop.daemon = True
    stop.start()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    computing = [part for part in options.parts if part != "summary"]
    if computing:
        log = options.out / "tasks.jsonl"
        log.unlink(missing_ok=True)  # tasks that it names are not started again
        append_row(log, {"part": "", "task": "environment", "status": "done", **environment()})
    with tempfile.TemporaryDirectory() as folder:
        if options.data:
            os.environ["S2FPN_DATA"] = str(unpacked(options.data, Path(folder)).resolve())
        for number, part in enumerate(computing):
            left = 60 * options.minutes - RESERVE - (time.monotonic() - started)
            supervise(part, options.out, options.device, left * SHARES[part] / sum(map(SHARES.get, computing[number:])))
            if "summary" in options.parts:  # after each part, in case that something ends this process
                write_page(options.out)
    if not computing:
        write_page(options.out)
    stop.cancel()


def own_age() -> float:
    """Seconds since this process was started, importing included; 0 where there is no /proc."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return float(Path("/proc/uptime").read_text().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")
    except OSError:
        return 0.0


def unpacked(data: Path, folder: Path) -> Path:
    """`data`, or `folder` with the contents of the archive, or of the archives in the folder, that it names."""
    archives = [data] if data.is_file() else sorted(data.glob("*.zip"))
    for path in archives:
        with zipfile.ZipFile(path) as archive:
            archive.extractall(folder)
    return folder if archives else data


def supervise(part: str, out: Path, device: str, seconds: float) -> None:
    """Runs a part in a process, anew where that breaks, and ends it with all its children after `seconds`."""
    end, log, done = time.monotonic() + seconds, out / "tasks.jsonl", {"part": part, "task": ""}
    paths = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
    variables = {"PYTHONPATH": paths, "S2FPN_TEST_DEVICE": device, "S2FPN_GPU_ROWS": str(out.resolve())}
    while (left := end - time.monotonic()) > 0:
        print(f"{part}: {left:.0f} s", flush=True)
        arguments = part, str(out.resolve()), device, time.time() + left
        # without waiting at the end for the threads of a backend
        code = f"import os; from s2fpn_lib.benchmark import gpu; gpu.run_part(*{arguments}); os._exit(0)"
        options = marked_tests() if part == "right" else ["-c", code]
        command = [sys.executable, *options]
        process = subprocess.Popen(command, cwd=PROJECT, env={**os.environ, **variables}, start_new_session=True)
        try:
            status = process.wait(timeout=left)
        except subprocess.TimeoutExpired:
            append_row(log, {**done, "status": "stopped: its share of the time was used"})
            return
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        broken = status < 0 or status == BROKEN
        append_row(log, {**done, "status": "done" if status == 0 else f"exit status {status}" + ", again" * broken})
        if not broken:
            return


def marked_tests() -> list[str]:
    """Arguments of Python for the tests marked cuda; other test files may import what a GPU machine lacks."""
    first = PROJECT / "tests" / "test_cuda.py"
    rest = (path for path in sorted((PROJECT / "tests").rglob("test_*.py")) if "mark.cuda" in path.read_text())
    files = dict.fromkeys(map(str, (first, *rest)))
    options = ["-m", "cuda", "-q", "--continue-on-collection-errors", "-p", "tests.gpu_rows", "-p", "no:cacheprovider"]
    return ["-m", "pytest", *options, *files]


def run_part(part: str, out: str | Path, device: str, until: float) -> None:
    """Runs the tasks of a part that tasks.jsonl does not name yet, until time.time() is `until`."""
    out, end = Path(out), time.monotonic() + until - time.time()
    log, target = out / "tasks.jsonl", torch.device(device)
    attempted = {row["task"] for row in read_rows(log) if row["part"] == part}
    for name, (needed, task) in TASKS[part](target, end, out).items():
        entry, start = {"part": part, "task": name}, time.monotonic()
        if name in attempted:
            continue
        if end - start < needed:
            append_row(log, {**entry, "status": f"left out: needs about {needed} s of {end - start:.0f}"})
            continue
        append_row(log, {**entry, "status": "started"})
        try:
            for file, row in task():
                append_row(out / file, row)
                print(f"  {name}: {' '.join(str(value) for value in row.values())[:150]}", flush=True)
            entry["status"] = "done"
        except Exception as error:
            entry |= {"status": "failed", "error": f"{type(error).__name__}: {error}"[:1000]}
            entry["where"] = traceback.format_exc(limit=-3)[-1500:]
            print(f"  {name}: {entry['error'][:300]}", flush=True)
        append_row(log, {**entry, "seconds": round(time.monotonic() - start, 1)})
        if entry["status"] == "failed":
            leave_if_broken()
        torch._dynamo.reset()  # otherwise it compiles the code of a module only a few times


def leave_if_broken() -> None:
    """Ends this process if its GPU no longer answers; an ordinary end would wait for it."""
    if torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except RuntimeError:
            os._exit(BROKEN)


if __name__ == "__main__":
    main()
