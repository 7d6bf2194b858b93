"""`make run`: executes the main notebooks in order and ends with the report.

    python -m s2fpn_lib.workbench.pipeline DATASET=roadscenes MAX_EPOCHS=5

Every NAME=value goes to each notebook that declares a parameter of that name (in lower case). The executed notebooks
are kept in results/main/, the report is results/report.html.
"""

from __future__ import annotations

import ast
import difflib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
import papermill

from s2fpn_lib.runs import PROJECT, results_root
from s2fpn_lib.workbench.parameters import Declaration, declarations

# What the main job asks for where its user does not: the notebook's own default takes a minute, in JupyterLab.
DEFAULTS = {"10_train": {"preset": "quick"}}
NOTEBOOKS = ("00_quickstart", "10_train", "11_evaluate", "90_report")


class PipelineError(RuntimeError):
    """A notebook is missing or failed, or a parameter fits none; worded for the person at the shell."""


def run(
    assignments: Sequence[str] = (),
    *,
    notebooks: Sequence[str] = NOTEBOOKS,
    folder: Path = PROJECT / "notebooks",
    results: Path | None = None,
) -> Path:
    """Executes `notebooks` of `folder` in order, one progress line each, and returns the report's path.

    `assignments`: "NAME=value" texts. `results`: env S2FPN_RESULTS or the project's results folder where None. Raises
    `PipelineError` before the first notebook runs for a parameter that no notebook has, and at the first that fails.
    """
    results = (results or results_root()).resolve()
    sources = {name: folder / f"{name}.ipynb" for name in notebooks}
    declared = {name: notebook_declarations(path) for name, path in sources.items()}
    values = distribute(assignments, declared)
    (results / "main").mkdir(parents=True, exist_ok=True)
    for number, (name, source) in enumerate(sources.items(), start=1):
        print(f"[{number}/{len(sources)}] {name} ...", end=" ", flush=True)
        start = time.monotonic()
        execute(source, results / "main" / source.name, values[name])
        print(f"{time.monotonic() - start:.0f} s", flush=True)
    report = results / "report.html"
    if not report.is_file():
        raise PipelineError(f"All notebooks ran, but {notebooks[-1]} wrote no {report}.")
    return report


def execute(source: Path, target: Path, values: dict[str, Any]) -> None:
    """Runs one notebook through papermill, in its own folder as JupyterLab does; the executed copy is `target`."""
    where = f"The notebook as far as it ran: {target}"
    try:
        papermill.execute_notebook(
            source,
            target,
            parameters=values,
            kernel_name="python3",
            progress_bar=False,
            cwd=source.parent,
            extra_arguments=["--log-level=CRITICAL"],  # each kernel's warnings would break the progress lines
        )
    except papermill.PapermillExecutionError as error:
        first_line = next(iter(error.source.strip().splitlines()), "")
        raise PipelineError(
            f"{source.name} failed in the cell that begins with\n    {first_line}\n"
            f"{error.ename}: {error.evalue}\n{where}"
        ) from error
    except Exception as error:  # the kernel died, ran out of memory, or never started
        raise PipelineError(f"{source.name} did not finish: {type(error).__name__}: {error}\n{where}") from error


def notebook_declarations(path: Path) -> list[Declaration]:
    """The declarations in the notebook's cell tagged `parameters`."""
    if not path.is_file():
        raise PipelineError(f"There is no notebook {path}.")
    cells = nbformat.read(path, as_version=4).cells
    tagged = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    return [declaration for cell in tagged for declaration in declarations(cell.source)]


def distribute(assignments: Sequence[str], declared: dict[str, list[Declaration]]) -> dict[str, dict[str, Any]]:
    """Sorts "NAME=value" texts to the notebooks that declare them: {notebook: {name: value}}.

    Text stays text for a parameter declared `str`; for any other type it is read as a Python literal, and the
    notebook's own check complains where that does not fit.
    """
    values = {notebook: dict(DEFAULTS.get(notebook, {})) for notebook in declared}
    every_name = sorted({declaration.name for known in declared.values() for declaration in known})
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        name = name.lower()
        if not equals or name not in every_name:
            near = difflib.get_close_matches(name, every_name, n=1)
            hint = f" Did you mean {near[0].upper()}=...?" if near else ""
            raise PipelineError(
                f"{assignment!r} fits no notebook of the pipeline.{hint}\n"
                f"Known: {' '.join(known.upper() for known in every_name)}"
            )
        for notebook, known in declared.items():
            for declaration in known:
                if declaration.name == name:
                    values[notebook][name] = text if declaration.annotation == "str" else _literal(text)
    return values


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def main(arguments: Sequence[str]) -> int:
    try:
        report = run(arguments)
    except PipelineError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    print(report)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
