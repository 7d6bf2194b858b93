"""Runs one notebook of a study and records how it went. Snakemake calls this; it also works by hand.

    python -m s2fpn_lib.workbench.run_notebook 20_ablation results/studies/try/one --parameters '{"seed": 1}'

The folder gets the executed notebook and then done.json, or failure.json, which the next success removes. papermill,
which executes it, neither waits for another process in the same folder, nor reserves GPUs, nor records a failure.
"""

import argparse
import contextlib
import html
import itertools
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from string import Template
from typing import Any

import nbformat
import papermill
from nbconvert import HTMLExporter

from s2fpn_lib.runs import PROJECT, RunDirectory, RunLocked, naming, utc_now, write_atomic, write_json
from s2fpn_lib.workbench import parameters

POLL_SECONDS = 0.5
# Environment variables that torch, numpy, and their libraries read when they start
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
IDENTITY = ("study", "variant", "dataset", "model", "revision", "seed")
CSS = Path(__file__).with_name("report_page.css")
# nbconvert's full templates load scripts from other servers; this page has none and works offline.
PAGE = Path(__file__).with_name("report_page.html")


class NotebookError(RuntimeError):
    """A notebook failed, or it cannot be run as asked; with the failed cell's first line, what it raised, and the path
    of the notebook as far as it ran."""

    def __init__(self, message: str, cell: str = "", error: str = "", executed: str = ""):
        super().__init__(message)
        self.cell, self.error, self.executed = cell, error, executed


def execute(source: Path, target: Path, values: dict[str, Any]) -> None:
    """Runs a notebook in its own folder, as JupyterLab does; `target` is the executed copy, as far as it ran.

    Raises NotebookError if a cell failed, or the kernel died or did not start.
    """
    target.unlink(missing_ok=True)  # an earlier attempt's copy must not be taken for this one's
    options = {"kernel_name": "python3", "progress_bar": False, "cwd": source.parent}
    options["extra_arguments"] = ["--log-level=CRITICAL"]  # a kernel's warnings would break progress lines
    try:
        with naming(target):
            papermill.execute_notebook(source, target, parameters=values, **options)
    except Exception as failure:
        if isinstance(failure, papermill.PapermillExecutionError):
            cell, error = failure.source, f"{failure.ename}: {failure.evalue}"
        else:
            cell, error = _last_started_cell(target), f"{type(failure).__name__}: {failure}"
        cell = cell.strip().split("\n")[0]
        what = f"failed in the cell that begins with\n    {cell}" if cell else "did not run"
        executed = str(target) if target.exists() else ""
        kept = f"The notebook as far as it ran: {executed}" if executed else "There is no executed notebook."
        raise NotebookError(f"{source.name} {what}\n{error}\n{kept}", cell, error, executed) from failure


def export_html(notebook: str | Path, target: str | Path) -> Path:
    """Writes the texts and outputs of an executed notebook as one self-contained page, atomically; returns its path.

    The page has no introduction (the first cell) and no parameters. Its title is the first heading of what remains.
    """
    executed = nbformat.read(notebook, as_version=4)
    executed.cells = executed.cells[1:]
    for cell in executed.cells:
        if "outputs" in cell:
            cell.outputs = [each for each in cell.outputs if parameters.TABLE not in each.get("metadata", {})]
    hidden = dict.fromkeys(("exclude_input", "exclude_input_prompt", "exclude_output_prompt"), True)
    # headings have no links to themselves, but keep their ids for the links of the contents
    exporter = HTMLExporter(template_name="basic", anchor_link_text="", **hidden)
    body, _ = exporter.from_notebook_node(executed)
    heading = re.search(r"<h1[^>]*>(.*?)<(?:a |/h1)", body)
    title = heading[1] if heading else html.escape(Path(notebook).stem)
    write_atomic(target, Template(PAGE.read_text()).substitute(title=title, css=CSS.read_text(), body=body))
    return Path(target)


def run_notebook(source: Path, folder: Path, values: dict[str, Any]) -> None:
    """Executes `source` with the parameters `values` into `folder`, and writes done.json, or failure.json on an error.

    Waits for any other process that works in this folder: another study, or the kernel of one that was just killed.
    """
    folder = folder.resolve()
    executed, failure = folder / source.name, folder / "failure.json"
    with _locked([folder], 1):
        if (folder / "run").exists():
            with _locked([folder / "run"], 1):
                pass
        try:
            execute(source, executed, values)
        except NotebookError as error:
            record = {name: values[name] for name in IDENTITY if name in values}
            record |= {"notebook": source.name, "executed": error.executed, "cell": error.cell, "error": error.error}
            with contextlib.suppress(OSError):  # a full disk must not hide the error itself
                write_json(failure, {**record, "time": utc_now()})
            raise
        failure.unlink(missing_ok=True)
        write_json(folder / "done.json", {"notebook": source.stem, "time": utc_now()})


@contextlib.contextmanager
def _locked(folders: Collection[Path], count: int) -> Iterator[list[Path]]:
    """Holds the locks of `count` of the folders; waits until other processes leave so many of them."""
    for attempt in itertools.count():
        with contextlib.ExitStack() as held:
            free = []
            for folder in folders:
                try:
                    held.enter_context(RunDirectory(folder).lock())
                    free.append(folder)
                except RunLocked as error:
                    reason = error
                if len(free) == count:
                    yield free
                    return
        if attempt == 0:
            print(f"waiting: {reason}", flush=True)
        time.sleep(POLL_SECONDS)


@contextlib.contextmanager
def reserved_gpus(count: int) -> Iterator[list[str]]:
    """Names of `count` GPUs, of those in CUDA_VISIBLE_DEVICES, that no other notebook on this machine has reserved.

    Waits until they are free. If the variable allows exactly `count`, a cluster has assigned them without conflict.
    """
    if not count:
        yield []
        return
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
    if count > len(names):
        raise NotebookError(f"{count} GPUs were asked for, and there are {len(names)}: {', '.join(names) or 'none'}")
    if visible and len(names) == count:
        yield names
        return
    gpus = {Path(tempfile.gettempdir(), f"s2fpn-gpu-{os.getuid()}-{name}"): name for name in names}
    with _locked(gpus, count) as reserved:
        yield [gpus[folder] for folder in reserved]


def _last_started_cell(executed: Path) -> str:
    """The last code cell that papermill gave a start time: there the kernel died. Empty if unknown; a notebook that
    cannot be read is removed."""
    try:
        cells = nbformat.read(executed, as_version=4).cells
    except Exception:  # missing, or cut off by a full disk
        with contextlib.suppress(OSError):
            executed.unlink()
        return ""
    started = [each.source for each in cells if each.metadata.get("papermill", {}).get("start_time")]
    return started[-1] if started else ""


def main(arguments: list[str] | None = None) -> None:
    """The command line. Exits with the message of an error, which gives the exit code 1."""
    parser = argparse.ArgumentParser(description="Run one notebook of a study.")
    parser.add_argument("notebook", help="its name in notebooks/, or a path")
    parser.add_argument("folder", type=Path, help="where everything goes")
    parser.add_argument("--parameters", type=json.loads, default={}, help="JSON object")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads of the kernel")
    parser.add_argument("--fresh", action="store_true", help="delete the rows of an unfinished attempt")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs to reserve for it")
    parser.add_argument("--html", type=Path, help="write the executed notebook here as a page without its code")
    given = parser.parse_args(arguments)
    source = Path(given.notebook)
    if source.suffix != ".ipynb":
        source = PROJECT / "notebooks" / f"{given.notebook}.ipynb"
    os.environ |= dict.fromkeys(THREAD_VARIABLES, str(given.threads))
    try:
        with reserved_gpus(given.gpus) as gpus:
            if gpus:
                os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
            if given.fresh:  # ratios are only valid between rows of one attempt
                shutil.rmtree(given.folder / source.stem, ignore_errors=True)
            run_notebook(source, given.folder, given.parameters)
            if given.html:
                export_html(given.folder / source.name, given.html)
    except NotebookError as error:
        sys.exit(str(error))
    except OSError as error:
        sys.exit(f"{given.folder} cannot be written: {error}")


if __name__ == "__main__":
    main()
