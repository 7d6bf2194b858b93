"""Says what is wrong with an installation, and the command that mends it.

    python -m s2fpn_lib.workbench.doctor        (or `make doctor`; exit code 1 where something must be mended)

In a notebook, `check_environment()` as the last line of a cell shows the same list. Packages are imported inside the
checks, so that one that is missing or broken becomes a finding.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from s2fpn_lib.runs import PROJECT

DISTRIBUTION = "s2fpn-workbench"

REINSTALL = f"{sys.executable} -m pip install -e '{PROJECT}[lite,openvino,studies,test]'"
MIN_PYTHON = (3, 11)
# CUDA's major version and the oldest build of torch for it that is recent enough, newest first
TORCH_BUILDS = {13: "cu130", 12: "cu126"}
GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One line of the examination: "ok", "note" (works, but know it) or "error" (must be mended)."""

    status: str
    what: str
    mend: str = ""

    def __str__(self) -> str:
        line = f"{self.status:>5}  {self.what}"
        return f"{line}\n       → {self.mend}" if self.mend else line


@dataclass(frozen=True)
class Examination:
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.status == "error"]

    def __repr__(self) -> str:
        count = len(self.errors)
        verdict = "Nothing to mend." if not count else f"{count} thing{'s' * (count > 1)} to mend."
        return "\n".join([*map(str, self.findings), verdict])


def check_environment() -> Examination:
    """Runs every check. A check that itself breaks becomes an error finding, never an exception."""
    checks: list[Callable[[], list[Finding]]] = [
        check_python,
        check_packages,
        check_kernel,
        check_gpu,
        check_disk,
        check_data,
    ]
    findings: list[Finding] = []
    for check in checks:
        try:
            findings += check()
        except Exception as error:
            what = f"{check.__name__} could not finish: {type(error).__name__}: {error}"
            findings.append(Finding("error", what, REINSTALL))
    return Examination(tuple(findings))


def check_python() -> list[Finding]:
    version = sys.version_info[:2]
    here = f"Python {sys.version.split()[0]} in {sys.prefix}"
    if version < MIN_PYTHON:
        wanted = ".".join(map(str, MIN_PYTHON))
        return [Finding("error", f"{here}: {wanted} or newer is needed", "make clean && make run PYTHON=python3.12")]
    return [Finding("ok", here)]


def check_packages() -> list[Finding]:
    """Holds what is installed against the requirements of this distribution, those of its extras included."""
    from packaging.requirements import Requirement

    try:
        requirements = [Requirement(text) for text in importlib.metadata.requires(DISTRIBUTION) or []]
    except importlib.metadata.PackageNotFoundError:
        what = f"{DISTRIBUTION} is not installed in this environment: notebooks cannot import s2fpn_lib"
        return [Finding("error", what, REINSTALL)]
    findings = []
    for requirement in requirements:
        extra = re.search(r"extra\s*==\s*['\"](\w+)['\"]", str(requirement.marker or ""))
        mend = f"{sys.executable} -m pip install '{requirement.name}{requirement.specifier}'"
        severity = "note" if extra else "error"
        label = f"{requirement.name} (optional, extra {extra[1]!r})" if extra else requirement.name
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            findings.append(Finding(severity, f"{label} is missing", mend))
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            findings.append(Finding(severity, f"{label} is {version}, wanted {requirement.specifier}", mend))
    satisfied = len(requirements) - len(findings)
    return [Finding("ok", f"{satisfied} of {len(requirements)} packages in place"), *findings]


def check_kernel() -> list[Finding]:
    """The notebooks name the kernel "python3": it must be this environment, or imports fail or, worse, differ."""
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    install = f"{sys.executable} -m ipykernel install --sys-prefix --name python3"
    try:
        spec = KernelSpecManager().get_kernel_spec("python3")
    except NoSuchKernel:
        return [Finding("error", "Jupyter knows no kernel 'python3'", install)]
    # A spec from elsewhere (the user's folder, JUPYTER_PATH) goes before this environment's: it has to go
    own = Path(spec.resource_dir).resolve().is_relative_to(Path(sys.prefix).resolve())
    mend = install if own else f"{sys.executable} -m jupyter kernelspec remove -f python3"
    # jupyter_client starts a bare "python" with the interpreter that runs it
    interpreter = sys.executable if Path(spec.argv[0]).name == spec.argv[0] else spec.argv[0]
    probe = [interpreter, "-c", "import sys; print(sys.prefix)"]
    try:
        prefix = subprocess.run(probe, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return [Finding("error", f"the kernel 'python3' starts {interpreter}, which does not run", mend)]
    if Path(prefix).resolve() != Path(sys.prefix).resolve():
        what = f"the kernel 'python3' ({spec.resource_dir}) belongs to {prefix}, not to {sys.prefix}"
        return [Finding("error", what, mend)]
    return [Finding("ok", "the notebook kernel 'python3' is this environment")]


def check_gpu() -> list[Finding]:
    import torch

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        return [Finding("ok", f"torch {torch.__version__} on {names}")]
    driver_cuda = _driver_cuda()
    if driver_cuda is None:
        what = f"torch {torch.__version__} on the CPU, {torch.get_num_threads()} threads: no NVIDIA driver found"
        return [Finding("note", what)]
    if torch.version.cuda is None:
        what = f"there is an NVIDIA GPU, but torch {torch.__version__} is a build for the CPU"
        return [Finding("error", what, _other_torch(driver_cuda))]
    if driver_cuda < tuple(int(part) for part in torch.version.cuda.split(".")[:2]):
        what = (
            f"the NVIDIA driver is too old: it runs CUDA {_dotted(driver_cuda)}, "
            f"torch {torch.__version__} was built for CUDA {torch.version.cuda}"
        )
        return [Finding("error", what, _other_torch(driver_cuda))]
    what = f"torch {torch.__version__} (CUDA {torch.version.cuda}) does not see the GPU that nvidia-smi shows"
    return [Finding("error", what, "unset CUDA_VISIBLE_DEVICES; then restart the kernel, or the machine")]


def _driver_cuda() -> tuple[int, ...] | None:
    """The newest CUDA version that the installed NVIDIA driver runs, None without a working driver."""
    try:
        shown = subprocess.run(["nvidia-smi"], capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"CUDA Version:\s*(\d+)\.(\d+)", shown)
    return (int(found[1]), int(found[2])) if found else None


def _other_torch(driver_cuda: tuple[int, ...]) -> str:
    """The command that brings a torch which this driver runs: a driver runs every build of its own major version."""
    build = next((tag for major, tag in TORCH_BUILDS.items() if driver_cuda[0] >= major), None)
    update = "update the NVIDIA driver (Ubuntu: sudo ubuntu-drivers install; elsewhere: nvidia.com/drivers)"
    if build is None:
        return f"{update}; until then everything runs on the CPU"
    index = f"https://download.pytorch.org/whl/{build}"
    return f"{sys.executable} -m pip install --force-reinstall torch torchvision --index-url {index}  (or {update})"


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def check_disk() -> list[Finding]:
    from s2fpn_lib.data.cache import cache_root
    from s2fpn_lib.runs import results_root

    findings = []
    for purpose, folder, mend in [
        ("results", results_root(), "free space, or set S2FPN_RESULTS to a larger disk"),
        ("the data cache", cache_root(), "free space, or set S2FPN_CACHE to a larger disk"),
    ]:
        existing = next(parent for parent in [folder, *folder.resolve().parents] if parent.exists())
        free = shutil.disk_usage(existing).free
        what = f"{free / GIB:.1f} GiB free for {purpose} ({folder})"
        if not os.access(existing, os.W_OK):
            findings.append(Finding("error", f"{folder} cannot be written, needed for {purpose}", mend))
        elif free < GIB:
            findings.append(Finding("error", what, mend))
        else:
            findings.append(Finding("ok", what))
    return findings


def check_data() -> list[Finding]:
    from s2fpn_lib.data import DatasetNotFound, open_dataset

    findings = [Finding("ok", "roadscenes is built in")]
    for name in ("camvid", "cityscapes"):
        try:
            dataset = open_dataset(name, split="train", cache=False)
        except DatasetNotFound as error:
            findings.append(Finding("note", f"{name} is not here", " ".join(str(error).split())))
        else:
            findings.append(Finding("ok", f"{name}: {len(dataset)} training images"))
    return findings


def main() -> int:
    examination = check_environment()
    print(examination)
    return 1 if examination.errors else 0


if __name__ == "__main__":
    sys.exit(main())
