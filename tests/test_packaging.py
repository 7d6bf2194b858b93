"""pyproject.toml is the one place that declares dependencies; the Makefile, environment.yml, and the imports agree."""

from __future__ import annotations

import ast
import fnmatch
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import s2fpn_lib

PROJECT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text())
CORE = {canonicalize_name(Requirement(text).name) for text in PYPROJECT["project"]["dependencies"]}
EXTRAS = {
    canonicalize_name(Requirement(text).name)
    for texts in PYPROJECT["project"]["optional-dependencies"].values()
    for text in texts
}
# Distribution of an imported module: where the name differs, or the declared package that always installs it
DISTRIBUTIONS = {"PIL": "pillow", "IPython": "ipywidgets", "traitlets": "ipywidgets", "jupyter_client": "papermill"}
DISTRIBUTIONS |= dict.fromkeys(("nbformat", "nbclient", "yaml"), "papermill") | {"mlflow": "mlflow-skinny"}

# Replaces python3 and .venv/bin/python: creates a "venv" that holds a copy of itself, "installs" unless FAIL is set,
# and prints any other call.
PYTHON = """\
#!/bin/sh
case "$1 $2 $3" in
  "-c "*) [ -z "$TOO_OLD" ] ;;
  "--version "*) echo "Python 3.9.1" ;;
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-m pip install") echo pip >> log; [ -z "$FAIL" ] ;;
  *) echo "called: $*" ;;
esac
"""


def imported(nodes: Iterable[ast.AST]) -> set[str]:
    """Distributions that the import statements among the nodes need."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module)
    modules = {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"s2fpn_lib"}
    return {canonicalize_name(DISTRIBUTIONS.get(module, module)) for module in modules}


def test_imports_are_declared_and_extras_are_optional():
    for path in (PROJECT / "s2fpn_lib").rglob("*.py"):
        tree = ast.parse(path.read_text())
        assert imported(tree.body) <= CORE, path
        assert imported(ast.walk(tree)) <= CORE | EXTRAS, path


def test_conda_and_make_install_the_same_extras():
    *_, through_pip = yaml.safe_load((PROJECT / "environment.yml").read_text())["dependencies"]
    extras = re.search(r"\.(\[[\w,]+\])", (PROJECT / "Makefile").read_text())[1]
    assert through_pip == {"pip": [f"-e .{extras}"]}
    assert set(extras.strip("[]").split(",")) <= set(PYPROJECT["project"]["optional-dependencies"])


def test_one_version_everywhere():
    citation = yaml.safe_load((PROJECT / "CITATION.cff").read_text())
    assert s2fpn_lib.__version__ == PYPROJECT["project"]["version"] == str(citation["version"])


def test_data_files_are_packaged():
    """A file that no pattern names would be missing from an installation."""
    data = PYPROJECT["tool"]["setuptools"]["package-data"]
    patterns = [f"{package.replace('.', '/')}/{each}" for package, names in data.items() for each in names]
    command = ["git", "ls-files", "s2fpn_lib"]
    files = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True).stdout.split()
    files = [name for name in files if not name.endswith(".py")]
    assert [name for name in files if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)] == []


@pytest.fixture
def make(tmp_path):
    """Runs make in a folder with the Makefile and a Python that installs nothing."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(PROJECT / name, tmp_path)
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    # flags and command-line variables of an outer make must not reach this one
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}

    def run(*words: str, **environment: str) -> subprocess.CompletedProcess:
        command = ["make", *words, f"PYTHON={tmp_path / 'python'}"]
        return subprocess.run(command, cwd=tmp_path, env={**inherited, **environment}, capture_output=True, text=True)

    return run


def test_make_run_installs_once_and_passes_parameters_on(make, tmp_path):
    assert make("run", FAIL="yes").returncode != 0
    (tmp_path / ".venv" / "half-written").touch()
    first = make("run", "DATASET=roadscenes", "EPOCHS=2")
    assert not (tmp_path / ".venv" / "half-written").exists(), "an interrupted installation starts again"
    called = first.stdout.splitlines()[-1].split()
    assert called[:3] == ["called:", "-m", "s2fpn_lib.workbench.pipeline"]
    assert sorted(called[3:]) == ["DATASET=roadscenes", "EPOCHS=2"]
    assert make("run", "S2FPN_DATA=/nowhere").stdout == "called: -m s2fpn_lib.workbench.pipeline\n"
    assert (tmp_path / "log").read_text() == "pip\npip\n"


def test_make_refuses_an_old_python(make, tmp_path):
    result = make("test", TOO_OLD="yes")
    assert result.returncode != 0
    assert "make test PYTHON=python3.12" in result.stdout
    assert not (tmp_path / ".venv").exists()


def test_make_check_names_tests_that_exist(make):
    named = [word for word in make("check").stdout.split() if word.startswith("tests/")]
    assert "tests/model" in named
    assert [name for name in named if not (PROJECT / name).exists()] == []


def test_make_clean_keeps_data_and_results(make, tmp_path):
    for folder in ("data", "results", ".venv"):
        (tmp_path / folder).mkdir()
    assert make("clean").returncode == 0
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"data", "results"}
