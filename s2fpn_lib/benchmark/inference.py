"""Speed, measured so that the number can be trusted: in turns with the published way, with its spread and protocol.

The timed graph is the scored graph: every network row ends with logits at the input's size, every end-to-end row begins
with a uint8 image and ends with its class ids. Ratios are within one call of `measure_rows`, on one machine.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from s2fpn_lib import runs
from s2fpn_lib.benchmark.published import PublishedInference, eval_fps
from s2fpn_lib.benchmark.timing import Timing, gpu_state, ratio_row, time_calls, time_in_turns
from s2fpn_lib.checkpoint import load_model, released_names
from s2fpn_lib.data import SegmentationDataset, evenly_spaced
from s2fpn_lib.evaluate import CONVENTION, evaluate
from s2fpn_lib.inference.optimize import BACKENDS, optimize_for_inference
from s2fpn_lib.metrics import class_ids
from s2fpn_lib.model import ENCODERS, S2FPN, build_model
from s2fpn_lib.model.complexity import measure_complexity

# MERGED speed_accuracy: """What a way to run a trained network costs and brings: its speed and its mIoU, of the same callable."""


# Plain baselines: torchvision's segmentation networks, untrained, with their one output.
BASELINES = ("lraspp_mobilenet_v3_large", "fcn_resnet50", "deeplabv3_resnet50")
PUBLISHED, NO_GRAD = "published", "published no_grad"  # the second records no graph for a backward pass
STAGES = ("network", "end to end")

Run = Callable[[Tensor], Tensor]


def measure_rows(
    names: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    *,
    revisions: Sequence[str] = ("v1",),
    backends: Sequence[str] = (PUBLISHED, "eager"),
    precisions: Sequence[str] = ("float32",),
    batches: Sequence[int] = (1,),
    stages: Sequence[str] = STAGES,
    num_classes: int = 19,
    eval_fps_calls: int = 0,
    device: torch.device | None = None,
    **stopwatch: Any,
) -> Iterator[dict[str, Any]]:
    """One row a network, revision, size, batch, stage, backend and precision.

    names: of `build_model`, of a released weight, or of `BASELINES`, which have no revision and run as they are.
    backends: "published" is the published code's way (`published_way`), "published no_grad" the same without recording
    a graph, the others those of `optimize_for_inference`. Untrained weights change no time. eval_fps_calls: above 0,
    the published way is also timed as eval_fps.py does it, in so many calls, of which only the mean is known (as p50
    and p90 of the stage "eval_fps"). stopwatch: options of `time_in_turns`.

    A row holds, besides its protocol: p50_ms, p90_ms, fps (batch / p50), spread, ratio (p50 of the published row of the
    same network, size, batch and stage / p50; None where that was not measured) with the repeats' ratio_low and
    ratio_high, parameters_m, gmacs (one is 2e9 floating-point operations), peak_mb (what the way added to the memory:
    weights and, at the highest, activations; on a CPU also what a backend imports when it is first used),
    max_difference (of logits, by optimisation).
    """
    device = device or torch.device("cpu")
    for stage in stages:
        if stage not in STAGES:
            raise ValueError(f"unknown stage {stage!r}. Known: {', '.join(STAGES)}")
    for backend in backends:
        if backend not in (PUBLISHED, NO_GRAD, *BACKENDS):
            raise ValueError(f"unknown backend {backend!r}. Known: {PUBLISHED}, {NO_GRAD}, {', '.join(BACKENDS)}")
    for name, revision, model in _networks(names, revisions, num_classes):
        model = model.to(device).eval()
        for height, width in sizes:
            counted = measure_complexity(model, (height, width))
            for batch in batches:
                protocol = {
                    "network": name,
                    "revision": revision,
                    "height": height,
                    "width": width,
                    "batch": batch,
                    "parameters_m": round(counted.megaparameters, 3),
                    "gmacs": round(batch * counted.gigamacs, 3),
                }
                images = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8)
                ways = _ways(name, backends, precisions)
                for row in _measure(model, images, ways, stages, eval_fps_calls, device, stopwatch):
                    yield {**protocol, **row, **session(device)}


def _networks(names: Sequence[str], revisions: Sequence[str], num_classes: int) -> Iterator[tuple[str, str, nn.Module]]:
    known = [*ENCODERS, *released_names(), *BASELINES]
    for name in names:
        if name not in known:
            raise ValueError(f"unknown network {name!r}. Known: {', '.join(known)}")
    for name in names:
        if name in BASELINES:
            get = torchvision.models.get_model
            yield name, "", get(name, weights=None, weights_backbone=None, num_classes=num_classes)
        elif name in ENCODERS:
            for revision in revisions:
                yield name, revision, build_model(name, revision=revision, num_classes=num_classes)
        else:
            model = load_model(name)
            yield name, model.config["revision"], model


def _ways(name: str, backends: Sequence[str], precisions: Sequence[str]) -> list[tuple[str, str]]:
    if name in BASELINES:
        return [("eager", "float32")]
    ways = [(each, "float32") for each in (PUBLISHED, NO_GRAD) if each in backends]
    return ways + [(b, p) for b in backends if b in BACKENDS for p in precisions if p in BACKENDS[b]]


def _measure(
    model: nn.Module,
    images: Tensor,
    ways: Sequence[tuple[str, str]],
    stages: Sequence[str],
    eval_fps_calls: int,
    device: torch.device,
    stopwatch: dict[str, Any],
) -> Iterator[dict[str, Any]]:
    """All rows of one network, size and batch: the ways take turns at each stage."""
    preprocess = getattr(model, "preprocess", lambda batch: batch.to(device).float() / 255)
    x = preprocess(images)
    running: dict[tuple[str, str], tuple[Run, dict[str, Any]]] = {}
    for way in ways:
        gc.collect()
        before = _reset_peak(device)
        run, difference = _runner(model, x, *way)
        run(x)
        after = _peak_mb(device)
        # Linux counts pages in batches of some 100 kB, so "nothing" can come out just below 0
        added = None if before is None or after is None else round(max(0.0, after - before), 1)
        running[way] = run, {"peak_mb": added, "max_difference": difference}
    for stage in stages:
        calls = {
            way: (lambda run=run: run(x))
            if stage == "network"
            else (lambda run=run: class_ids(run(preprocess(images))).cpu())
            for way, (run, _) in running.items()
        }
        timings = time_in_turns(calls, device, **stopwatch)
        for way, timing in timings.items():
            yield {
                "stage": stage,
                "backend": way[0],
                "precision": way[1],
                **timing.row(),
                "fps": round(len(images) / timing.p50, 2),
                **ratio_row(timings.get((PUBLISHED, "float32")), timing),
                **running[way][1],
            }
    if eval_fps_calls and (PUBLISHED, "float32") in running:
        run, _ = running[PUBLISHED, "float32"]
        fps = eval_fps(run, x, warmup=eval_fps_calls // 2, calls=eval_fps_calls)
        mean = Timing(((len(images) / fps,),))
        row = {"stage": "eval_fps", "backend": PUBLISHED, "precision": "float32"}
        yield {**row, **mean.row(), "calls": eval_fps_calls, "fps": round(fps, 2)}


def _runner(model: nn.Module, x: Tensor, backend: str, precision: str) -> tuple[Run, float | None]:
    if not isinstance(model, S2FPN):  # torchvision's

        def run(batch: Tensor) -> Tensor:
            with torch.inference_mode():
                return model(batch)["out"]

        return run, None
    if backend in (PUBLISHED, NO_GRAD):
        return PublishedInference(model, grad=backend == PUBLISHED), None
    fast = optimize_for_inference(model, x, backend, precision=precision, verbose=False)
    return fast, fast.max_difference


def session(device: torch.device) -> dict[str, Any]:
    """What a row was measured on: machine, its load or clocks at the end of the measurement, and the software."""
    environment = runs.environment()
    cuda = device.type == "cuda"
    gpu = environment["gpus"][device.index or 0] if cuda else ""
    return {
        "device": gpu or f"{environment['cpu']}, {environment['threads']} threads",
        **(gpu_state(device.index or 0) if cuda else {}),
        "torch": environment["torch"],
        "git_sha": environment["git_sha"],
        "time": environment["time"],
    }


def _reset_peak(device: torch.device) -> float | None:
    """Forgets the highest memory so far; MB in use now: torch's on CUDA, the process's resident size on Linux."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device) / 1e6
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # no Linux
        return None
    return _status_mb("VmRSS")


def _peak_mb(device: torch.device) -> float | None:
    """Highest memory since `_reset_peak`, MB; None where nobody counts it."""
    return torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else _status_mb("VmHWM")


def _status_mb(name: str) -> float | None:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    kilobytes = next((line.split()[1] for line in status.splitlines() if line.startswith(name)), None)
    return int(kilobytes) / 1e3 if kilobytes else None


CALIBRATION_IMAGES = 8


def measure_speed_and_accuracy(
    model: S2FPN,
    scored: SegmentationDataset,
    calibration: SegmentationDataset,
    *,
    backends: Sequence[str] = ("eager",),
    precisions: Sequence[str] = ("float32",),
    limit: int | None = None,
    repeats: int = 3,
    seconds: float = 1.0,
) -> Iterator[dict[str, Any]]:
    """One row for each backend and precision that it has.

    scored: gives the mIoU, and the images that are timed, one at a time at the protocol's size. calibration: the split
    whose images give int8 its ranges; never the scored one. limit: images that are scored, evenly spread; None: all.

    A row holds its protocol and: p50_ms, p90_ms and fps end to end (uint8 image to class ids), spread, miou, and
    `changed`, the share of the pixels of the timed image that the float32 network gives another class.

    Raises ValueError where `calibration` and `scored` share images.
    """
    if set(scored.names) & set(calibration.names):
        raise ValueError(f"{calibration.split} (ranges of int8) and {scored.split} (score) share images")
    protocol, device = scored.protocol, next(model.parameters()).device
    examples = torch.stack([calibration[i][0] for i in evenly_spaced(len(calibration), CALIBRATION_IMAGES)]).to(device)
    image = scored[0][0][None].to(device)
    with torch.inference_mode():
        expected = class_ids(model(model.preprocess(image)))
    for backend in backends:
        for precision in (each for each in precisions if each in BACKENDS[backend]):
            example = model.preprocess(examples if precision == "int8" else image)
            fast = optimize_for_inference(model, example, backend, precision=precision, verbose=False)

            def call(fast=fast):
                return class_ids(fast(fast.preprocess(image))).cpu()

            timing = time_calls(call, device, repeats=repeats, seconds=seconds)
            score = evaluate(fast, scored, batch_size=1, limit=limit, progress=False)
            yield {
                "network": model.config["name"],
                "revision": model.config["revision"],
                "backend": backend,
                "precision": precision,
                "height": protocol.size[0],
                "width": protocol.size[1],
                "batch": 1,
                "stage": "end to end",
                **timing.row(),
                "fps": round(1 / timing.p50, 2),
                "protocol": protocol.name,
                "split": scored.split,
                "images": len(score.indices),
                "convention": CONVENTION,
                "miou": score.confusion.miou(),
                "changed": float((call() != expected.cpu()).float().mean()),
                **session(device),
            }
