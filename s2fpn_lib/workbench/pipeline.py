"""`make run`: executes the main notebooks in order, ending with the report.

    python -m s2fpn_lib.workbench.pipeline DATASET=roadscenes MAX_EPOCHS=5

Each NAME=value goes to every notebook that declares a parameter of that name (in lower case).
"""

import ast
import contextlib
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import papermill

from s2fpn_lib.runs import PROJECT, results_folder, results_root
from s2fpn_lib.validate import did_you_mean
from s2fpn_lib.workbench.provenance import newest_run
from s2fpn_lib.workbench.run_notebook import NotebookError, execute, export_html

NOTEBOOKS = ("10_train", "00_quickstart", "11_evaluate", "12_speed", "31_inspector", "90_report")
# Values of this pipeline where the user gives none. The notebook's own default is for a quick look in JupyterLab.
DEFAULTS: dict[str, dict[str, Any]] = {"10_train": {"preset": "quick"}}
DEFAULTS["12_speed"] = {"measure": ["inference"], "sizes": [], "eval_fps_calls": 0}  # sizes: of the run's protocol


def run(
    assignments: Sequence[str] = (), *, notebooks: Sequence[str] = NOTEBOOKS, folder: Path = PROJECT / "notebooks"
) -> Path:
    """Executes `notebooks` of `folder` in order and returns the path of the report: the last one, without its code.

    assignments: "NAME=value" texts. Raises NotebookError for an unknown NAME, before the first notebook runs, and for a
    notebook that fails; WriteError if the results folder is not writable.
    """
    results = results_root().resolve()
    values = distribute(assignments, {name: declared_types(folder / f"{name}.ipynb") for name in notebooks})
    main = results_folder(results, "main")
    for number, name in enumerate(notebooks, start=1):
        print(f"[{number}/{len(notebooks)}] {name} ...", end=" ", flush=True)
        start = time.monotonic()
        executed = main / f"{name}.ipynb"
        if newest := newest_run(results):  # what 10_train has trained
            own = {"12_speed": {"models": [str(newest)]}, "31_inspector": {"checkpoint": str(newest)}}
            values[name] = own.get(name, {}) | values[name]
        execute(folder / f"{name}.ipynb", executed, values[name])
        print(f"{time.monotonic() - start:.0f} s", flush=True)
    return export_html(executed, results / "report.html")


def declared_types(path: Path) -> dict[str, str]:
    """{name: type} of the parameters that a notebook declares."""
    return {name: each["inferred_type_name"] for name, each in papermill.inspect_notebook(path).items()}


def distribute(assignments: Sequence[str], types: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, Any]]:
    """{notebook: {parameter: value}} of "NAME=value" texts, for the notebooks that declare them.

    types: {notebook: {parameter: type}}. A value is read as a Python literal where it is one and not declared `str`.
    """
    values = {notebook: dict(DEFAULTS.get(notebook, {})) for notebook in types}
    known = sorted({name.upper() for declared in types.values() for name in declared})
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or name.upper() not in known:
            hint = f"write NAME=value.{did_you_mean(name.upper(), known)}\nKnown: {' '.join(known)}"
            raise NotebookError(f"{assignment!r} fits no notebook of the pipeline: {hint}")
        if ("/" in text or Path(text).suffix) and Path(text).exists():
            text = str(Path(text).resolve())  # the notebooks run in their own folder
        name, literal = name.lower(), text
        with contextlib.suppress(SyntaxError, ValueError):
            literal = ast.literal_eval(text)
        for notebook, declared in types.items():
            if name in declared:
                values[notebook][name] = text if declared[name] == "str" else literal
    return values


def main(arguments: Sequence[str]) -> None:
    """Prints the report's path, or exits with the error's message and the exit code 1."""
    try:
        print(run(arguments))
    except (NotebookError, OSError) as error:
        sys.exit(f"\n{error}")


if __name__ == "__main__":
    main(sys.argv[1:])
