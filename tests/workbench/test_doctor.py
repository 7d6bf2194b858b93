"""Each problem with an installation is found and comes with the command that fixes it."""

import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from s2fpn_lib.workbench import doctor

SMI = "| NVIDIA-SMI 535.54    Driver Version: 535.54    CUDA Version: 12.2 |"


def errors(check):
    return [finding for finding in check() if finding.status == "error"]


def test_this_environment_is_sound():
    assert not errors(doctor.check_kernel)
    assert not errors(doctor.check_folders)


def test_broken_requirements(monkeypatch):
    said = SimpleNamespace(returncode=1, stdout="s2fpn-workbench 0.1.0 requires papermill, which is not installed.\n")
    monkeypatch.setattr(subprocess, "run", lambda *command, **options: said)
    (finding,) = errors(doctor.check_packages)
    assert "requires papermill" in finding.what
    assert "-m pip install -e" in finding.fix


def test_the_command_fixes_a_kernelspec_of_another_environment(monkeypatch, tmp_path):
    spec = tmp_path / "jupyter" / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"argv": ["/somewhere/else/bin/python"], "display_name": "x", "language": "x"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    (finding,) = errors(doctor.check_kernel)
    assert "starts /somewhere/else/bin/python" in finding.what
    subprocess.run(finding.fix, shell=True, check=True, capture_output=True, timeout=120)
    assert not spec.exists()
    assert not errors(doctor.check_kernel)


@pytest.mark.parametrize(
    ("built_for", "message", "command"),
    [
        (None, "CUDA not included) cannot use", "pip install --force-reinstall torch"),
        ("13.0", "cannot use the NVIDIA driver (CUDA Version: 12.2)", "download.pytorch.org/whl/cu126"),
        ("12.1", "does not see the GPU", "unset CUDA_VISIBLE_DEVICES"),
    ],
)
def test_a_gpu_that_torch_cannot_use(monkeypatch, tmp_path, built_for, message, command):
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\necho '{SMI}'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built_for)
    (finding,) = errors(doctor.check_gpu)
    assert message in finding.what
    assert command in finding.fix


def test_a_full_disk(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**6))
    assert ["S2FPN_RESULTS" in finding.fix for finding in errors(doctor.check_folders)] == [True, False]


def test_missing_data_is_a_note_that_says_where_it_was_searched(monkeypatch, tmp_path):
    monkeypatch.setenv("S2FPN_DATA", str(tmp_path))
    camvid, cityscapes = doctor.check_data()
    assert {camvid.status, cityscapes.status} == {"note"}
    assert str(tmp_path) in camvid.fix


def test_a_check_that_fails_is_an_error_finding(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(doctor, "check_packages", list)
    doctor.check_environment()
    printed = capsys.readouterr().out
    assert "check_gpu failed: ModuleNotFoundError" in printed
    assert printed.splitlines()[-1] == "1 to fix."
