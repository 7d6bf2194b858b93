"""Examines an installation and names the command that fixes each problem.

    python -m s2fpn_lib.workbench.doctor        (or `make doctor`; exit code 1 if something must be fixed)

`pip check` compares packages with their requirements, and `torch.utils.collect_env` asks the GPU's driver. They do not
find a kernel that starts another Python, a build of torch that the driver cannot run, or a folder without space.
"""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from s2fpn_lib.runs import PROJECT, results_root

REINSTALL = f"{sys.executable} -m pip install -e '{PROJECT}[lite,openvino,studies,test]'"


class Finding(NamedTuple):
    """One line of the examination. `status` is "ok", "note" (works, but is worth knowing), or "error"."""

    status: str
    what: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.status:>5}  {self.what}" + (f"\n       → {self.fix}" if self.fix else "")


def check_environment() -> int:
    """Prints the findings of every check and returns the number of errors. A check that itself fails is an error."""
    found = []
    for check in (check_packages, check_kernel, check_gpu, check_folders, check_data):
        try:
            found += check()
        except Exception as error:
            found.append(Finding("error", f"{check.__name__} failed: {type(error).__name__}: {error}", REINSTALL))
    errors = sum(finding.status == "error" for finding in found)
    print(*found, f"{errors} to fix." if errors else "No problem found.", sep="\n")
    return errors


def check_packages() -> Iterator[Finding]:
    importlib.metadata.version("s2fpn-workbench")  # raises an error where this project is not installed
    result = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    status, fix = ("error", REINSTALL) if result.returncode else ("ok", "")
    yield from (Finding(status, line, fix) for line in result.stdout.splitlines())


def check_kernel() -> Iterator[Finding]:
    """The notebooks name the kernel "python3". It must start this environment, else imports fail or differ."""
    from jupyter_client.kernelspec import KernelSpecManager

    spec = KernelSpecManager().get_kernel_spec("python3")
    python, prefix = Path(spec.argv[0]), Path(sys.prefix).resolve()
    # jupyter_client starts a bare "python" with the interpreter that runs it
    if python.name == spec.argv[0] or (python.exists() and python.parent.parent.resolve() == prefix):
        yield Finding("ok", f"the notebook kernel 'python3' runs Python {sys.version.split()[0]} in {prefix}")
        return
    # A kernelspec from elsewhere (the user's folder, JUPYTER_PATH) is found before this environment's: remove it
    own = Path(spec.resource_dir).resolve().is_relative_to(prefix)
    action = "ipykernel install --sys-prefix --name python3" if own else "jupyter kernelspec remove -f python3"
    what = f"the kernel 'python3' ({spec.resource_dir}) starts {python}, which is not the Python of {prefix}"
    yield Finding("error", what, f"{sys.executable} -m {action}")


def check_gpu() -> Iterator[Finding]:
    import torch
    from torch.torch_version import TorchVersion
    from torch.utils.collect_env import run

    build = f"torch {torch.__version__} (CUDA {torch.version.cuda or 'not included'})"
    newest = re.findall(r"CUDA Version:\s*([\d.]+)", run("nvidia-smi")[1])  # the newest CUDA that the driver runs
    if torch.cuda.is_available():
        yield Finding("ok", f"{build} on {torch.cuda.get_device_name()}")
    elif not newest:
        yield Finding("note", f"{build} on the CPU: no NVIDIA driver found")
    elif torch.version.cuda and TorchVersion(torch.version.cuda) <= newest[0]:
        fix = "unset CUDA_VISIBLE_DEVICES; then restart the kernel, or the machine"
        yield Finding("error", f"{build} does not see the GPU that nvidia-smi shows", fix)
    else:
        fix = "update the NVIDIA driver (Ubuntu: sudo ubuntu-drivers install; elsewhere: nvidia.com/drivers)"
        if TorchVersion(newest[0]) >= "12":  # the oldest CUDA that torch is built for
            tag = "cu130" if TorchVersion(newest[0]) >= "13" else "cu126"
            install = f"{sys.executable} -m pip install --force-reinstall torch torchvision"
            fix = f"{install} --index-url https://download.pytorch.org/whl/{tag}  (or {fix})"
        yield Finding("error", f"{build} cannot use the NVIDIA driver (CUDA Version: {newest[0]})", fix)


def check_folders() -> Iterator[Finding]:
    from s2fpn_lib.data.cache import cache_root

    for variable, folder in {"S2FPN_RESULTS": results_root(), "S2FPN_CACHE": cache_root()}.items():
        existing = next(parent for parent in [folder, *folder.resolve().parents] if parent.exists())
        free = shutil.disk_usage(existing).free / 2**30
        if os.access(existing, os.W_OK) and free >= 1:
            yield Finding("ok", f"{folder} can be written, {free:.1f} GiB free")
        else:
            fix = f"free space, or set {variable} to another folder"
            yield Finding("error", f"{folder} cannot be written or is nearly full ({free:.1f} GiB free)", fix)


def check_data() -> Iterator[Finding]:
    from s2fpn_lib.data import DatasetNotFound, open_dataset

    for name in ("camvid", "cityscapes"):
        try:
            images = len(open_dataset(name, split="train", cache=False))
            yield Finding("ok", f"{name}: {images} training images")
        except DatasetNotFound as error:
            yield Finding("note", f"{name} is not installed", " ".join(str(error).split()))


if __name__ == "__main__":
    sys.exit(check_environment() > 0)
