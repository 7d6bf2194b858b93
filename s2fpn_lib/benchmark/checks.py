"""Does a GPU compute what the CPU computes? Tasks that give rows for right.jsonl.

A row names its `check`, what was compared, the differences, and `ok`. TF32 is off where it is not named.
"""

import subprocess
import sys
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s2fpn_lib.benchmark.training import step_config
from s2fpn_lib.benchmark.ways import Rows, Task, allow_tf32, settled
from s2fpn_lib.checkpoint import load_model, released_names
from s2fpn_lib.data.roadscenes.dataset import RoadScenes
from s2fpn_lib.inference import optimize_for_inference
from s2fpn_lib.model import ENCODERS, S2FPN, build_model
from s2fpn_lib.model.blocks import REVISIONS
from s2fpn_lib.model.modes import AMP_DTYPES
from s2fpn_lib.runs import PROJECT, RunDirectory
from s2fpn_lib.state import TrainingState
from s2fpn_lib.train import train_step

CPU = torch.device("cpu")
SIZE = (96, 128)
LOGITS = 1e-3  # largest relative difference in float32
STEP = 1e-4  # the same of a training step's loss and gradients, whose loss is computed in float32
CHANGED = 0.05  # largest share of pixels whose class a lower precision changes


def tasks(device: torch.device, end: float, out: Path) -> dict[str, Task]:
    """All checks; `end` is the time.monotonic at which the part ends."""
    tests = start_tests() if device.type == "cuda" else None  # in the background
    networks = [(name, revision) for name in ("s2fpn18", "s2fpn_lite") for revision in REVISIONS]
    rest = [(name, revision) for name in ENCODERS for revision in REVISIONS if (name, revision) not in networks]
    found = {f"logits {name} {revision}": partial(logits, name, revision, device) for name, revision in networks}
    found |= {f"no host sync, {way}": partial(no_host_sync, way, device) for way in ("same loss", "modern", "fp16")}
    found |= {f"resume, {way}": partial(resume, way, device) for way in ("same loss", "modern")}
    found |= {f"precision {name}": partial(precisions, name, device) for name in (*released_names(), "s2fpn18")}
    found |= {f"step {name} {revision}": partial(steps, name, revision, device) for name, revision in networks}
    found |= {f"logits {name} {revision}": partial(logits, name, revision, device) for name, revision in rest}
    if tests:
        found["tests marked cuda"] = partial(finish_tests, tests, end)
    return {name: (1.0, check) for name, check in found.items()}


def start_tests() -> subprocess.Popen:
    """pytest on the files with tests marked cuda, which import less than all test files."""
    files = [str(path) for path in sorted((PROJECT / "tests").rglob("test_*.py")) if "mark.cuda" in path.read_text()]
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "-q", "-p", "no:cacheprovider"]
    command += ["--continue-on-collection-errors", *files]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=PROJECT, **output)


def finish_tests(tests: subprocess.Popen, end: float) -> Rows:
    try:
        output, _ = tests.communicate(timeout=max(1.0, end - time.monotonic() - 3))
    except subprocess.TimeoutExpired:
        tests.kill()
        output = tests.communicate()[0] + "\nstopped: no time left"
    yield "right.jsonl", {"check": "tests marked cuda", "output": output[-6000:], "ok": tests.returncode == 0}


def relative(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Largest |a - b|, and the same relative to the largest |b| (or 1)."""
    difference = float((a.cpu().double() - b.cpu().double()).abs().max())
    return difference, difference / max(1.0, float(b.abs().max()))


def untrained(name: str, revision: str = "v1") -> S2FPN:
    """A network whose attention is not blended out, with normalized activations."""
    torch.manual_seed(0)
    return settled(build_model(name, revision=revision, num_classes=5, gamma_init=0.5), SIZE)


def logits(name: str, revision: str, device: torch.device) -> Rows:
    """The same network on both devices."""
    allow_tf32(False)
    model = untrained(name, revision)
    x = model.preprocess(torch.randint(0, 256, (2, 3, *SIZE), dtype=torch.uint8))
    with torch.inference_mode():
        expected = model(x)
        found = model.to(device)(x.to(device))
    difference, share = relative(found, expected)
    row = {"check": "logits", "network": name, "revision": revision, "difference": difference}
    yield "right.jsonl", {**row, "relative": share, "limit": LOGITS, "ok": share <= LOGITS}


def training(way: str, name: str, device: torch.device, folder: str, **changes: Any) -> TrainingState:
    """A training of `way` ("same loss", "modern", or "fp16": modern in that precision) on four small scenes."""
    config = step_config("same loss" if way == "same loss" else "modern", name, 4, SIZE)
    config = config.replace(**({"amp": way} if way in AMP_DTYPES else {}), **changes)
    state = TrainingState(config, RoadScenes("train", size=SIZE, count=8), None, device, RunDirectory(folder))
    state.model.train()
    return state


def steps(name: str, revision: str, device: torch.device) -> Rows:
    """Loss and gradients of one training step, without dropout, whose masks differ between devices.

    In float64 both devices agree. In float32 the CPU itself is up to 12 % off (batch norm over the few pixels of the
    coarsest maps amplifies rounding), so there the device has to be as close to float64 as the CPU is.
    """
    allow_tf32(False)
    wanted = first_step(name, revision, CPU, torch.float64)
    common = {"check": "step", "network": name, "revision": revision, "loss": wanted[0]}
    loss, gradient = step_error(first_step(name, revision, device, torch.float64), wanted)
    row = {"precision": "float64", "loss_relative": loss, "gradient_relative": gradient}
    yield "right.jsonl", {**common, **row, "ok": max(loss, gradient) <= STEP}
    of_cpu = step_error(first_step(name, revision, CPU, torch.float32), wanted)
    loss, gradient = step_error(first_step(name, revision, device, torch.float32), wanted)
    row = {"precision": "float32", "loss_relative": loss, "gradient_relative": gradient, "of_the_cpu": of_cpu}
    ok = loss <= STEP + 2 * of_cpu[0] and gradient <= STEP + 2 * of_cpu[1]
    yield "right.jsonl", {**common, **row, "ok": ok}


def first_step(name: str, revision: str, device: torch.device, dtype: torch.dtype) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients (in float64, on the CPU) of the first step of a training."""
    with tempfile.TemporaryDirectory() as folder:
        switches = {"dropout": 0.0, "gamma_init": 0.5}
        state = training("same loss", name, device, folder, revision=revision, switches=switches)
        state.model.to(dtype)
        train_step(state, *state.loader.batch(0, 0))
        gradients = {key: p.grad.cpu().double() for key, p in state.model.named_parameters() if p.grad is not None}
        return float(state.loss_sum), gradients


def step_error(found: tuple[float, dict[str, Tensor]], wanted: tuple[float, dict[str, Tensor]]) -> tuple[float, float]:
    """Relative errors of the loss and of the whole gradient, the latter in the Euclidean norm."""
    distance = sum(float((found[1][key] - wanted[1][key]).square().sum()) for key in wanted[1])
    length = sum(float(gradient.square().sum()) for gradient in wanted[1].values())
    return abs(found[0] - wanted[0]) / wanted[0], (distance / length) ** 0.5


def no_host_sync(way: str, device: torch.device) -> Rows:
    """A step of s2fpn_lite that only enqueues work: every wait for the device is an error."""
    with tempfile.TemporaryDirectory() as folder:
        state = training(way, "s2fpn_lite", device, folder)
        batches = [next(iter(state.loader)) for _ in range(2)]
        for batch in batches:  # the first steps create what libraries keep
            train_step(state, *batch)
        error = ""
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.set_sync_debug_mode("error")
        try:
            for batch in batches:
                train_step(state, *batch)
        except RuntimeError as found:
            error = str(found)[:500]
        finally:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
    yield (
        "right.jsonl",
        {"check": "no host sync", "way": way, "amp": state.amp or "off", "error": error, "ok": not error},
    )


def resume(way: str, device: torch.device) -> Rows:
    """Four steps in one go, and two, a saved state, and two more: all tensors of both states are bit-equal."""
    states = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            for parts in ((4,), (2, 2)):
                with tempfile.TemporaryDirectory() as folder:
                    for count in parts:
                        state = training(way, "s2fpn_lite", device, folder)
                        for _ in range(count):
                            train_step(state, *state.loader.batch(*divmod(state.step, len(state.loader))))
                        state.save()
                    states.append(tensors(state))
        finally:
            torch.use_deterministic_algorithms(False)
    different = [key for key, value in states[0].items() if not torch.equal(value, states[1][key])]
    unsure = sorted({str(w.message).split(" ")[0] for w in caught if "deterministic" in str(w.message)})
    row = {"check": "resume", "way": way, "tensors": len(states[0]), "different": different[:5]}
    yield "right.jsonl", {**row, "without deterministic kernel": unsure, "ok": not different}


def tensors(state: TrainingState) -> dict[str, Tensor]:
    """Weights, averages, and the optimizer's moments."""
    found = dict(state.model.state_dict())
    found |= {f"ema {key}": value for key, value in (state.ema.state_dict() if state.ema else {}).items()}
    for number, moments in state.optimizer.state_dict()["state"].items():
        found |= {f"optimizer {number} {key}": torch.as_tensor(value) for key, value in moments.items()}
    return found


def precisions(name: str, device: torch.device) -> Rows:
    """Logits in each precision, plain and by `optimize_for_inference`, against float32 on the CPU."""
    model = load_model(name).eval() if name in released_names() else untrained(name)
    image = RoadScenes("val", size=(360, 480), count=1)[0][0][None]
    with torch.inference_mode():
        expected = model(model.preprocess(image))
    x = model.to(device).preprocess(image)
    for precision in ("float32", "tf32", *AMP_DTYPES):
        allow_tf32(precision == "tf32")
        dtype = AMP_DTYPES.get(precision)
        fast = optimize_for_inference(model, x, precision=precision.replace("tf32", "float32"), verbose=False)
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype is not None):
            plain = model(x).float()
        for check, found in (("precision", plain), ("optimized", fast(x))):
            difference, share = relative(found, expected)
            changed = float((found.argmax(1).cpu() != expected.argmax(1)).float().mean())
            row = {"check": check, "network": name, "precision": precision, "difference": difference}
            ok = share <= LOGITS if precision == "float32" else changed < CHANGED
            yield "right.jsonl", {**row, "relative": share, "changed": changed, "ok": ok}
