"""Speed of inference, in turns with the published implementation, and the accuracy of what was timed.

The timed graph is the scored graph: a row of the stage "network" ends with logits at the input's size, a row of the
stage "end to end" starts with a uint8 image and ends with its class ids. Ratios are within one call of `measure_rows`
on one machine.
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

BASELINES = ("lraspp_mobilenet_v3_large", "fcn_resnet50", "deeplabv3_resnet50")  # of torchvision, untrained
PUBLISHED, NO_GRAD = "published", "published no_grad"  # the second records no graph for a backward pass
STAGES = ("network", "end to end")
CALIBRATION_IMAGES = 8

Run = Callable[[Tensor], Tensor]
Method = tuple[str, str]  # backend, precision


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
    """One row per network, revision, size, batch size, stage, backend, and precision.

    A row holds its protocol and: p50_ms, p90_ms, fps (batch / p50), spread, ratio (p50 of the published row of the same
    network, size, batch, and stage / p50; None if that was not measured) with ratio_low and ratio_high of the repeats,
    parameters_m, gmacs (1e9 multiply-accumulates), peak_mb (memory that the method added: weights and the peak of the
    activations; on a CPU also what a backend imports at its first use), max_difference (of the logits, from the
    optimization).

    Args:
        names: of `build_model`, of a released weight, or of `BASELINES`, which have no revision and one method.
        sizes: (height, width) of the input.
        backends: "published" (`PublishedInference`), "published no_grad" (the same without a recorded graph), and those
            of `optimize_for_inference`. Networks of `build_model` are untrained, which does not change the time.
        eval_fps_calls: above 0, "published" is also timed as eval_fps.py does it, with this number of calls; only their
            mean is known, given as p50 and p90 of the stage "eval_fps".
        stopwatch: options of `time_in_turns`.

    Raises:
        ValueError: unknown network, stage, or backend.
    """
    device = device or torch.device("cpu")
    _check("network", names, (*ENCODERS, *released_names(), *BASELINES))
    _check("stage", stages, STAGES)
    _check("backend", backends, (PUBLISHED, NO_GRAD, *BACKENDS))
    for name, revision, model in _networks(names, revisions, num_classes):
        model = model.to(device).eval()
        for height, width in sizes:
            cost = measure_complexity(model, (height, width))
            for batch in batches:
                protocol = {
                    "network": name,
                    "revision": revision,
                    "height": height,
                    "width": width,
                    "batch": batch,
                    "parameters_m": round(cost.megaparameters, 3),
                    "gmacs": round(batch * cost.gigamacs, 3),
                }
                images = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8)
                methods = _methods(name, backends, precisions)
                for row in _measure(model, images, methods, stages, eval_fps_calls, device, stopwatch):
                    yield {**protocol, **row, **session(device)}


def _check(what: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"unknown {what} {name!r}. Known: {', '.join(known)}")


def _networks(names: Sequence[str], revisions: Sequence[str], num_classes: int) -> Iterator[tuple[str, str, nn.Module]]:
    for name in names:
        if name in BASELINES:
            options = {"weights": None, "weights_backbone": None, "num_classes": num_classes}
            yield name, "", torchvision.models.get_model(name, **options)
        elif name in ENCODERS:
            for revision in revisions:
                yield name, revision, build_model(name, revision=revision, num_classes=num_classes)
        else:
            model = load_model(name)
            yield name, model.config["revision"], model


def _methods(name: str, backends: Sequence[str], precisions: Sequence[str]) -> list[Method]:
    if name in BASELINES:
        return [("eager", "float32")]
    methods = [(each, "float32") for each in (PUBLISHED, NO_GRAD) if each in backends]
    return methods + [(b, p) for b in backends if b in BACKENDS for p in precisions if p in BACKENDS[b]]


def _measure(
    model: nn.Module,
    images: Tensor,
    methods: Sequence[Method],
    stages: Sequence[str],
    eval_fps_calls: int,
    device: torch.device,
    stopwatch: dict[str, Any],
) -> Iterator[dict[str, Any]]:
    """All rows of one network, size, and batch size; the methods take turns at each stage."""
    preprocess = getattr(model, "preprocess", lambda batch: batch.to(device).float() / 255)
    x = preprocess(images)
    running: dict[Method, Run] = {}
    costs: dict[Method, dict[str, Any]] = {}
    for method in methods:
        gc.collect()
        before = _reset_peak(device)
        running[method], difference = _runner(model, x, *method)
        running[method](x)
        after = _peak_mb(device)
        # Linux counts pages in batches of about 100 kB, so that the difference may be slightly negative
        added = None if before is None or after is None else round(max(0.0, after - before), 1)
        costs[method] = {"peak_mb": added, "max_difference": difference}
    for stage in stages:
        if stage == "network":
            calls = {method: lambda run=run: run(x) for method, run in running.items()}
        else:
            calls = {
                method: lambda run=run: class_ids(run(preprocess(images))).cpu() for method, run in running.items()
            }
        timings = time_in_turns(calls, device, **stopwatch)
        for method, timing in timings.items():
            yield {
                "stage": stage,
                "backend": method[0],
                "precision": method[1],
                **timing.row(),
                "fps": round(len(images) / timing.p50, 2),
                **ratio_row(timings.get((PUBLISHED, "float32")), timing),
                **costs[method],
            }
    if eval_fps_calls and (PUBLISHED, "float32") in running:
        fps = eval_fps(running[PUBLISHED, "float32"], x, warmup=eval_fps_calls // 2, calls=eval_fps_calls)
        mean = Timing(((len(images) / fps,),))
        row = {"stage": "eval_fps", "backend": PUBLISHED, "precision": "float32"}
        yield {**row, **mean.row(), "calls": eval_fps_calls, "fps": round(fps, 2)}


def _runner(model: nn.Module, x: Tensor, backend: str, precision: str) -> tuple[Run, float | None]:
    """The callable of a method, and the largest difference of its logits if it is an optimized one."""
    if not isinstance(model, S2FPN):  # of torchvision
        return torch.inference_mode()(lambda batch: model(batch)["out"]), None
    if backend in (PUBLISHED, NO_GRAD):
        return PublishedInference(model, grad=backend == PUBLISHED), None
    fast = optimize_for_inference(model, x, backend, precision=precision, verbose=False)
    return fast, fast.max_difference


def session(device: torch.device) -> dict[str, Any]:
    """The conditions of a measurement: machine, clocks of a GPU at its end, and software versions."""
    environment = runs.environment()
    cuda = device.type == "cuda"
    gpu = environment["gpus"][device.index or 0] if cuda else ""
    return {
        "device": gpu or f"{environment['cpu']}, {environment['threads']} threads",
        **(gpu_state(device.index or 0) if cuda else {}),
        **{key: environment[key] for key in ("torch", "git_sha", "time")},
    }


def _reset_peak(device: torch.device) -> float | None:
    """Resets the peak of the memory; MB in use now: torch's on CUDA, the process's resident size on Linux.

    `resource.getrusage` has the peak, too, but cannot reset it.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device) / 1e6
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux
        return None
    return _status_mb("VmRSS")


def _peak_mb(device: torch.device) -> float | None:
    """Peak of the memory since `_reset_peak`, in MB; None where the system does not count it."""
    return torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else _status_mb("VmHWM")


def _status_mb(name: str) -> float | None:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    kilobytes = next((line.split()[1] for line in status.splitlines() if line.startswith(name)), None)
    return int(kilobytes) / 1e3 if kilobytes else None


def measure_speed_and_accuracy(
    model: S2FPN,
    scored: SegmentationDataset,
    calibration: SegmentationDataset,
    *,
    backends: Sequence[str] = ("eager",),
    precisions: Sequence[str] = ("float32",),
    limit: int | None = None,
    **stopwatch: Any,
) -> Iterator[dict[str, Any]]:
    """One row per backend and precision: the speed and the mIoU of the same callable.

    A row holds its protocol and: p50_ms, p90_ms, and fps end to end (uint8 image to class ids), spread, miou, and
    `changed`, the share of the pixels of the timed image whose class differs from the float32 network's.

    Args:
        scored: the split that is scored; its first image is timed, one at a time at the protocol's size.
        calibration: the split whose images give the activation ranges of int8.
        limit: number of scored images, evenly spaced; None for all.
        stopwatch: options of `time_calls`.

    Raises:
        ValueError: unknown backend, or `calibration` and `scored` share images.
    """
    _check("backend", backends, tuple(BACKENDS))
    if set(scored.names) & set(calibration.names):
        raise ValueError(f"{calibration.split} (ranges of int8) and {scored.split} (score) share images")
    protocol, device = scored.protocol, next(model.parameters()).device
    examples = torch.stack([calibration[i][0] for i in evenly_spaced(len(calibration), CALIBRATION_IMAGES)]).to(device)
    image = scored[0][0][None].to(device)
    with torch.inference_mode():
        expected = class_ids(model(model.preprocess(image))).cpu()
    for backend, precision in _methods(model.config["name"], backends, precisions):
        example = model.preprocess(examples if precision == "int8" else image)
        fast = optimize_for_inference(model, example, backend, precision=precision, verbose=False)

        def call(fast=fast):
            return class_ids(fast(fast.preprocess(image))).cpu()

        timing = time_calls(call, device, **stopwatch)
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
            "changed": float((call() != expected).float().mean()),
            **session(device),
        }
