"""Runs one notebook of a study and leaves a trace of how it went; Snakemake calls this, and so may anyone.

    python -m s2fpn_lib.workbench.run_notebook 20_ablation results/studies/try/one --parameters '{"seed": 1}' --threads 2

The folder gets the executed notebook, then done.json; or failure.json, which the next success removes.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nbformat
import torch

from s2fpn_lib.runs import RunDirectory, RunLocked, write_json
from s2fpn_lib.workbench.pipeline import PROJECT, PipelineError, execute

POLL_SECONDS = 0.5
# What torch, numpy and their libraries read when they start
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
IDENTITY = ("study", "variant", "dataset", "model", "revision", "seed")


def run_notebook(source: Path, folder: Path, parameters: dict[str, Any]) -> None:
    """Executes `source` with `parameters` into `folder`; afterwards there is done.json.

    Whoever else works in this folder is waited for: another study, or the kernel of one that was killed a moment ago.

    Raises PipelineError where the notebook fails; failure.json then says where and why.
    """
    folder = folder.resolve()
    failure = folder / "failure.json"
    with contextlib.ExitStack() as held:
        held.enter_context(_waiting_for(RunDirectory(folder)))
        if (folder / "run").exists():
            with _waiting_for(RunDirectory(folder / "run")):
                pass
        try:
            execute(source, folder / source.name, parameters)
        except PipelineError as error:
            with contextlib.suppress(OSError):  # a full disk must not hide what happened
                write_json(failure, _failure(source, folder / source.name, parameters, error))
            raise
        failure.unlink(missing_ok=True)
        write_json(folder / "done.json", {"notebook": source.stem, "time": _now()})


@contextlib.contextmanager
def _waiting_for(run: RunDirectory) -> Iterator[None]:
    """Holds the directory's lock as soon as its present holder, if there is one, has let go."""
    told = False
    while True:
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(run.lock())
            except RunLocked as error:
                if not told:
                    print(f"waiting: {error}", flush=True)
                told = True
            else:
                yield
                return
        time.sleep(POLL_SECONDS)


@contextlib.contextmanager
def reserved_gpus(count: int) -> Iterator[list[str]]:
    """Names of `count` GPUs that no other notebook on this machine has reserved; waits until so many are free.

    They are chosen among those that CUDA_VISIBLE_DEVICES allows; where it allows just so many, a cluster has allotted
    them and knows better. A lock belongs to its process, so none outlives it.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
    if count > len(names):
        raise PipelineError(f"{count} GPUs were asked for, and there are {len(names)}: {', '.join(names) or 'none'}")
    if not count or (visible and len(names) == count):
        yield names[:count]
        return
    while True:
        with contextlib.ExitStack() as held:
            free = []
            for name in names:
                path = Path(tempfile.gettempdir()) / f"s2fpn-gpu-{os.getuid()}-{name}.lock"
                file = path.open("w")
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    file.close()
                    continue
                held.enter_context(file)
                free.append(name)
                if len(free) == count:
                    break
            if len(free) == count:
                yield free
                return
        time.sleep(POLL_SECONDS)


def _failure(source: Path, executed: Path, parameters: dict[str, Any], error: PipelineError) -> dict[str, Any]:
    """What failure.json holds."""
    cause = error.__cause__
    return {
        **{name: parameters[name] for name in IDENTITY if name in parameters},
        "notebook": source.name,
        "executed": str(executed),
        "cell": _unfinished_cell(executed),
        "error": f"{getattr(cause, 'ename', type(cause).__name__)}: {getattr(cause, 'evalue', cause)}",
        "time": _now(),
    }


def _unfinished_cell(executed: Path) -> str:
    """First line of the cell in which the executed notebook stopped; empty where that is not known."""
    try:
        cells = nbformat.read(executed, as_version=4).cells
    except Exception:  # not written, or torn by what went wrong
        return ""
    reached = {"failed": [], "completed": []}
    for cell in cells:
        reached.setdefault(cell.metadata.get("papermill", {}).get("status"), []).append(cell)
    # papermill calls a cell completed, too, in which the kernel died
    stopped = reached["failed"] or reached["completed"][-1:]
    return stopped[0].source.strip().split("\n")[0] if stopped else ""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Run one notebook of a study.")
    parser.add_argument("notebook", help="its name in notebooks/, or a path")
    parser.add_argument("folder", type=Path, help="where everything goes")
    parser.add_argument("--parameters", type=json.loads, default={}, help="JSON object")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads of the kernel")
    parser.add_argument("--fresh", action="store_true", help="forget the rows of an unfinished attempt")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs to reserve for it")
    given = parser.parse_args(arguments)
    source = Path(given.notebook)
    if source.suffix != ".ipynb":
        source = PROJECT / "notebooks" / f"{given.notebook}.ipynb"
    os.environ |= dict.fromkeys(THREAD_VARIABLES, str(given.threads))
    try:
        with reserved_gpus(given.gpus) as gpus:
            if gpus:
                os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
            if given.fresh:  # rows of two attempts would stand in one file, and their ratios are only good within one
                shutil.rmtree(given.folder / source.stem, ignore_errors=True)
            run_notebook(source, given.folder, given.parameters)
    except PipelineError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{given.folder} cannot be written: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
