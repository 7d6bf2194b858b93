"""Each thing that can be wrong with an installation is found and comes with the way to mend it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

from s2fpn_lib.workbench import doctor
from s2fpn_lib.workbench.doctor import Finding

SMI = "| NVIDIA-SMI 535.54    Driver Version: 535.54    CUDA Version: 12.2 |"


def only(findings: list[Finding], status: str) -> Finding:
    [finding] = [finding for finding in findings if finding.status == status]
    return finding


def requires(monkeypatch: pytest.MonkeyPatch, *requirements: str) -> None:
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: list(requirements))


def test_this_environment_is_sound():
    statuses = [f.status for check in (doctor.check_python, doctor.check_kernel) for f in check()]
    assert set(statuses) == {"ok"}
    assert not [finding for finding in doctor.check_packages() if finding.status == "error"]


def test_old_python(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    assert "3.11 or newer" in only(doctor.check_python(), "error").what


def test_missing_package(monkeypatch):
    requires(monkeypatch, "no-such-package>=2", "torch>=1")
    finding = only(doctor.check_packages(), "error")
    assert "no-such-package is missing" in finding.what
    assert finding.mend == f"{sys.executable} -m pip install 'no-such-package>=2'"


def test_package_too_old(monkeypatch):
    requires(monkeypatch, "torch>=99")
    assert f"torch is {importlib.metadata.version('torch')}, wanted >=99" in only(doctor.check_packages(), "error").what


def test_missing_extra_is_only_a_note(monkeypatch):
    requires(monkeypatch, 'no-such-package>=2; extra == "lite"')
    assert "extra 'lite'" in only(doctor.check_packages(), "note").what


def test_not_installed(monkeypatch):
    monkeypatch.setattr(doctor, "DISTRIBUTION", "no-such-distribution")
    assert "pip install -e" in only(doctor.check_packages(), "error").mend


def test_kernel_of_another_environment(monkeypatch, tmp_path):
    other = tmp_path / "python"
    other.write_text("#!/bin/sh\necho /somewhere/else\n")
    other.chmod(0o755)
    spec = SimpleNamespace(argv=[str(other), "-m", "ipykernel_launcher"], resource_dir="kernels/python3")
    monkeypatch.setattr(KernelSpecManager, "get_kernel_spec", lambda self, name: spec)
    finding = only(doctor.check_kernel(), "error")
    assert "belongs to /somewhere/else" in finding.what
    assert "kernelspec remove" in finding.mend
    spec.resource_dir = f"{sys.prefix}/share/jupyter/kernels/python3"
    assert "ipykernel install --sys-prefix" in only(doctor.check_kernel(), "error").mend


@pytest.fixture
def foreign_kernel(monkeypatch, tmp_path):
    """A kernelspec of another environment that Jupyter finds before this one's."""
    python = executable(tmp_path / "other" / "python", "echo /somewhere/else")
    spec = tmp_path / "jupyter" / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec.write_text(json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    return spec


def executable(path, command):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{command}\n")
    path.chmod(0o755)
    return path


def test_the_mending_command_mends_a_foreign_kernelspec(foreign_kernel):
    finding = only(doctor.check_kernel(), "error")
    assert str(foreign_kernel.parent) in finding.what
    subprocess.run(finding.mend, shell=True, check=True, capture_output=True, timeout=120)
    assert not foreign_kernel.exists()
    assert only(doctor.check_kernel(), "ok")


def test_a_sick_installation_is_examined_as_its_user_does_it(foreign_kernel, monkeypatch, tmp_path):
    """python -m s2fpn_lib.workbench.doctor where the kernelspec, a package and the driver are really wrong."""
    metadata = tmp_path / "site" / "s2fpn_workbench-0.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    head = "Metadata-Version: 2.1\nName: s2fpn-workbench\nVersion: 0\n"
    metadata.write_text(f"{head}Requires-Dist: torch>=2\nRequires-Dist: no-such-package>=2\n")
    executable(tmp_path / "bin" / "nvidia-smi", f"echo '{SMI.replace('12.2', '9.0')}'")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}{os.pathsep}{doctor.PROJECT}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    command = [sys.executable, "-m", "s2fpn_lib.workbench.doctor"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert result.returncode == 1, result.stderr
    lines = result.stdout.splitlines()
    errors = [line + lines[i + 1] for i, line in enumerate(lines) if line.startswith("error")]
    kernel = next(error for error in errors if "kernel" in error)
    assert "belongs to /somewhere/else" in kernel
    assert "jupyter kernelspec remove -f python3" in kernel
    package = next(error for error in errors if "no-such-package" in error)
    assert "-m pip install 'no-such-package>=2'" in package
    driver = next(error for error in errors if "NVIDIA" in error)
    assert "update the NVIDIA driver" in driver
    assert lines[-1] == f"{len(errors)} things to mend."


def test_a_package_that_the_checks_need_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(doctor, "check_data", list)
    finding = only([f for f in doctor.check_environment().findings if "check_gpu" in f.what], "error")
    assert "ModuleNotFoundError" in finding.what
    assert finding.mend == doctor.REINSTALL


def test_kernel_whose_python_is_gone(monkeypatch):
    spec = SimpleNamespace(argv=["/gone/bin/python"], resource_dir="kernels/python3")
    monkeypatch.setattr(KernelSpecManager, "get_kernel_spec", lambda self, name: spec)
    assert "does not run" in only(doctor.check_kernel(), "error").what


def test_no_kernel(monkeypatch):
    def missing(self, name):
        raise NoSuchKernel(name)

    monkeypatch.setattr(KernelSpecManager, "get_kernel_spec", missing)
    assert "no kernel 'python3'" in only(doctor.check_kernel(), "error").what


@pytest.mark.parametrize(
    ("built_for", "message", "command"),
    [
        (None, "build for the CPU", "pip install --force-reinstall torch"),
        ("13.0", "driver is too old: it runs CUDA 12.2", "download.pytorch.org/whl/cu126"),
        ("12.1", "does not see the GPU", "unset CUDA_VISIBLE_DEVICES"),
    ],
)
def test_gpu_that_torch_cannot_use(monkeypatch, built_for, message, command):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built_for)
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: SimpleNamespace(stdout=SMI))
    finding = only(doctor.check_gpu(), "error")
    assert message in finding.what
    assert command in finding.mend


def test_no_gpu_is_only_a_note(monkeypatch):
    def no_such_command(*args, **kwargs):
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(subprocess, "run", no_such_command)
    assert "no NVIDIA driver" in only(doctor.check_gpu(), "note").what


@pytest.mark.cuda
def test_gpu_is_named():
    assert torch.cuda.get_device_name(0) in only(doctor.check_gpu(), "ok").what


def test_full_disk(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**6))
    results, cache = doctor.check_disk()
    assert (results.status, cache.status) == ("error", "error")
    assert "S2FPN_RESULTS" in results.mend
    assert "S2FPN_CACHE" in cache.mend


def test_data_found(camvid_root):
    assert "camvid: 367 training images" in [finding.what for finding in doctor.check_data()]


def test_data_missing_says_where_it_looked(monkeypatch, tmp_path):
    monkeypatch.setenv("S2FPN_DATA", str(tmp_path))
    notes = {finding.what: finding.mend for finding in doctor.check_data() if finding.status == "note"}
    assert set(notes) == {"camvid is not here", "cityscapes is not here"}
    assert str(tmp_path) in notes["camvid is not here"]


def test_a_broken_check_is_a_finding(monkeypatch):
    def broken():
        raise OSError("disk on fire")

    monkeypatch.setattr(doctor, "check_disk", broken)
    examination = doctor.check_environment()
    assert any("disk on fire" in finding.what for finding in examination.errors)


@pytest.mark.parametrize(("status", "code"), [("error", 1), ("note", 0)])
def test_exit_code(monkeypatch, capsys, status, code):
    examination = doctor.Examination((Finding(status, "something", "do this"),))
    monkeypatch.setattr(doctor, "check_environment", lambda: examination)
    assert doctor.main() == code
    assert "something\n       → do this" in capsys.readouterr().out
