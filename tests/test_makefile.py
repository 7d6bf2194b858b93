"""The Makefile's installation rule, with a stand-in for Python that installs nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent

# Stands in for both python3 and .venv/bin/python: makes a "venv" that holds itself, "installs" unless FAIL is set,
# and prints any other call.
DEMO_RUN = """\
#!/bin/sh
case "$1 $2 $3" in
  "-c "*) [ -z "$TOO_OLD" ] ;;
  "--version "*) echo "Python 3.9.1" ;;
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-m pip install") echo pip >> "$LOG"; [ -z "$FAIL" ] ;;
  *) echo "called: $*" ;;
esac
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(PROJECT / name, tmp_path)
    (tmp_path / "fake").write_text(DEMO_RUN)
    (tmp_path / "fake").chmod(0o755)
    return tmp_path


def make(project: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    # an outer make's flags and command-line variables must not reach this one
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", *arguments, f"PYTHON={project / 'fake'}"],
        cwd=project,
        env={**inherited, "LOG": str(project / "log"), **environment},
        capture_output=True,
        text=True,
    )


def installations(project: Path) -> int:
    log = project / "log"
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_run_installs_once_and_passes_parameters_on(project):
    first = make(project, "run", "DATASET=roadscenes", "EPOCHS=2")
    assert first.returncode == 0, first.stderr
    called = first.stdout.splitlines()[-1].split()
    assert called[:3] == ["called:", "-m", "s2fpn_lib.workbench.pipeline"]
    assert sorted(called[3:]) == ["DATASET=roadscenes", "EPOCHS=2"]
    assert make(project, "run", "S2FPN_DATA=/nowhere").stdout == "called: -m s2fpn_lib.workbench.pipeline\n"
    assert installations(project) == 1


def test_an_interrupted_installation_starts_anew(project):
    assert make(project, "run", FAIL="yes").returncode != 0
    (project / ".venv" / "half-written").touch()
    assert make(project, "run").returncode == 0
    assert not (project / ".venv" / "half-written").exists()
    assert installations(project) == 2


def test_changed_dependencies_are_installed_on_top(project):
    make(project, "run")
    (project / ".venv" / "kept").touch()
    later = (project / ".venv" / ".installed").stat().st_mtime + 10
    os.utime(project / "pyproject.toml", (later, later))
    make(project, "run")
    assert installations(project) == 2
    assert (project / ".venv" / "kept").exists()


def test_old_python_is_refused_with_the_way_out(project):
    result = make(project, "test", TOO_OLD="yes")
    assert result.returncode != 0
    assert "Python 3.11 or newer is needed" in result.stdout
    assert "make test PYTHON=python3.12" in result.stdout
    assert not (project / ".venv").exists()


def test_clean_keeps_data_and_results(project):
    make(project, "run")
    for folder in ("data", "results"):
        (project / folder).mkdir()
        (project / folder / "precious").touch()
    (project / "s2fpn_lib" / "__pycache__").mkdir(parents=True)
    assert make(project, "clean").returncode == 0
    assert (project / "data" / "precious").exists()
    assert (project / "results" / "precious").exists()
    assert not (project / ".venv").exists()
    assert not (project / "s2fpn_lib" / "__pycache__").exists()
