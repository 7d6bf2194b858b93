"""Speed of inference, in turns with the published implementation, and the accuracy of what was timed.

The timed graph is the scored graph: a row of the stage "network" ends with logits at the input's size, a row of the
stage "end to end" starts with a uint8 image and ends with its class ids. Where both stages are asked for, the network
is timed inside the end-to-end calls. Ratios are within one call of `measure_rows` on one machine.
"""

import gc
import hashlib
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from s2fpn_lib import runs
from s2fpn_lib.benchmark.published import PublishedInference, eval_fps
from s2fpn_lib.benchmark.timing import Timing, gpu_state, time_in_turns, timed_call
from s2fpn_lib.checkpoint import find_weights, load_model, released_names
from s2fpn_lib.data import SegmentationDataset
from s2fpn_lib.evaluate import evaluate
from s2fpn_lib.inference.optimize import BACKENDS, calibration_images, optimize_for_inference
from s2fpn_lib.metrics import class_ids
from s2fpn_lib.model import ENCODERS, S2FPN, build_model
from s2fpn_lib.model.complexity import measure_complexity
from s2fpn_lib.model.tta import at_size

BASELINES = ("lraspp_mobilenet_v3_large", "fcn_resnet50", "deeplabv3_resnet50")  # of torchvision, untrained
PUBLISHED, NO_GRAD = "published", "published no_grad"  # the second records no graph for a backward pass
STAGES = ("network", "end to end")
SCORED = ("protocol", "split", "data", "images", "images_seen", "convention", "miou")
CPU = torch.device("cpu")

Run = Callable[[Tensor], Tensor]
Method = tuple[str, str]  # backend, precision
REFERENCE = (PUBLISHED, "float32")


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
    device: torch.device = CPU,
    **stopwatch: Any,
) -> Iterator[dict[str, Any]]:
    """One row per network, revision, size, batch size, stage, backend, and precision.

    A row holds its protocol, the columns of `Timing.row`, and: fps (batch / p50), the ratios to the published row of
    the same network, size, batch, and stage, parameters_m, gmacs (1e9 multiply-accumulates), peak_mb (see `started`; on
    a CPU with what a backend imports at its first use), max_difference (of the logits, from the optimization).

    Args:
        names: of `build_model` (untrained), released weights or run folders (rows with the `checkpoint_sha` of their
            evaluations), or `BASELINES`, which have no revision and one method.
        sizes: (height, width) of the input.
        backends: "published", "published no_grad" (without a recorded graph), and those of `optimize_for_inference`.
        eval_fps_calls: above 0, "published" is also timed as eval_fps.py does it, with this number of calls, whose mean
            is p50 and p90 of the stage "eval_fps".
        stopwatch: options of `time_in_turns`.

    Raises ValueError for an unknown network, stage, or backend.
    """
    named = [name for name in names if not Path(name).exists()]  # the others are run folders or files of weights
    _check("network", named, (*ENCODERS, *released_names(), *BASELINES))
    _check("stage", stages, STAGES)
    _check("backend", backends, (PUBLISHED, NO_GRAD, *BACKENDS))
    for network, model in _networks(names, revisions, num_classes):
        model = model.to(device).eval()
        methods = [("eager", "float32")] if network["network"] in BASELINES else _methods(backends, precisions)
        for height, width in sizes:
            cost = measure_complexity(model, (height, width))
            for batch in batches:
                protocol = {**network, "height": height, "width": width, "batch": batch}
                protocol |= {"parameters_m": round(cost.megaparameters, 3), "gmacs": round(batch * cost.gigamacs, 3)}
                images = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8)
                for row in _measure(model, images, methods, stages, eval_fps_calls, **stopwatch):
                    yield {**protocol, **row, **session(device)}


def _check(what: str, names: Sequence[str], known: Collection[str]) -> None:
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"unknown {what} {unknown[0]!r}. Known: {', '.join(known)}")


def _networks(
    names: Sequence[str], revisions: Sequence[str], num_classes: int
) -> Iterator[tuple[dict[str, str], nn.Module]]:
    for name in names:
        if name in BASELINES:
            import torchvision  # here, because its import takes over a second

            options = {"weights": None, "weights_backbone": None, "num_classes": num_classes}
            yield {"network": name, "revision": ""}, torchvision.models.get_model(name, **options)
        elif name in ENCODERS:
            for revision in revisions:
                network = {"network": name, "revision": revision}
                yield network, build_model(name, revision=revision, num_classes=num_classes)
        else:
            model = load_model(name)
            network = name if name in released_names() else model.config["name"]
            sha = hashlib.sha256(find_weights(name).read_bytes()).hexdigest()[:10]
            yield {"network": network, "revision": model.config["revision"], "checkpoint_sha": sha}, model


def _methods(backends: Sequence[str], precisions: Sequence[str]) -> list[Method]:
    published = [(backend, "float32") for backend in (PUBLISHED, NO_GRAD) if backend in backends]
    return published + [(b, p) for b in backends for p in precisions if p in BACKENDS.get(b, ())]


def _measure(
    model: nn.Module, images: Tensor, methods: list[Method], stages: Sequence[str], fps_calls: int, **stopwatch: Any
) -> Iterator[dict[str, Any]]:
    """All rows of one network, size, and batch size; the methods take turns at each stage."""
    device = next(model.parameters()).device
    preprocess = getattr(model, "preprocess", lambda batch: batch.to(device).float() / 255)
    x = preprocess(images)
    running: dict[Method, Run] = {}
    added: dict[Method, float | None] = {}
    for method in methods:
        running[method], added[method] = started(partial(_runner, model, x, *method), device, x)
    if "end to end" in stages:
        calls = {method: partial(_end_to_end, run, preprocess, images) for method, run in running.items()}
    else:
        calls = {method: partial(run, x) for method, run in running.items()}
    whole = time_in_turns(calls, device, **stopwatch)
    for stage in stages:
        inside = stage == "network" and "end to end" in stages
        timings = {method: timing.of_parts() if inside else timing for method, timing in whole.items()}
        for method, timing in timings.items():
            row = timed(stage, method, timing, len(images)) | timing.ratio_row(timings.get(REFERENCE))
            difference = getattr(running[method], "max_difference", None)  # of an optimized network
            yield {**row, "peak_mb": added[method], "max_difference": difference}
    if fps_calls and REFERENCE in running:
        fps = eval_fps(running[REFERENCE], x, warmup=fps_calls // 2, calls=fps_calls)
        timing = Timing(((len(images) / fps,),), cpu_share=whole[REFERENCE].cpu_share)
        yield timed("eval_fps", REFERENCE, timing, len(images)) | {"calls": fps_calls}


def _runner(model: nn.Module, x: Tensor, backend: str, precision: str) -> Run:
    if not isinstance(model, S2FPN):  # of torchvision
        return torch.inference_mode()(lambda batch: model(batch)["out"])
    if backend in (PUBLISHED, NO_GRAD):
        return PublishedInference(model, grad=backend == PUBLISHED)
    # the speed does not depend on the pixels, and those of `measure_rows` are noise, on which no layer is chosen
    return optimize_for_inference(model, x, backend, precision=precision, tolerance=1.0, verbose=False)


def _end_to_end(run: Run, preprocess: Run, images: Tensor) -> float:
    """From uint8 images to their class ids on the CPU; returns the seconds that the network took."""
    x = preprocess(images)
    seconds, logits = timed_call(partial(run, x), x.device)
    class_ids(logits).cpu()
    return seconds


def timed(stage: str, method: Method, timing: Timing, batch: int) -> dict[str, Any]:
    """The columns of a row that say what was timed, and its times."""
    names = {"stage": stage, "backend": method[0], "precision": method[1]}
    return {**names, **timing.row(), "fps": round(batch / timing.p50, 2)}


def session(device: torch.device) -> dict[str, Any]:
    """The conditions of a measurement: machine, clocks of a GPU at its end, and software versions."""
    environment = runs.environment()
    versions = {key: environment[key] for key in ("torch", "git_sha", "time")}
    if device.type == "cuda":
        index = device.index or 0
        return {"device": environment["gpus"][index], **gpu_state(index), **versions}
    device_name = f"{environment['cpu']}, {environment['threads']} threads"
    return {"device": device_name, "instruction_set": environment["instruction_set"], **versions}


def started(make: Callable[[], Run], device: torch.device, *inputs: Tensor) -> tuple[Run, float | None]:
    """What `make` returns, after a first call, and the MB that it added: what it keeps, and the peak of a call, on CUDA
    of the second one, because the first one needs memory for cuDNN's search."""
    gc.collect()
    before = peak_mb(device, reset=True)
    run = make()
    run(*inputs)
    if device.type == "cuda":
        peak_mb(device, reset=True)
        run(*inputs)
    # Linux counts pages in batches of about 100 kB, so that the difference may be slightly negative
    return run, None if before is None else round(max(0.0, peak_mb(device) - before), 1)


def peak_mb(device: torch.device, *, reset: bool = False) -> float | None:
    """Peak of the memory in MB since the last reset: torch's on CUDA, the resident size on Linux, elsewhere None."""
    if device.type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1e3
    except (OSError, TypeError):  # not Linux
        return None


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

    A row holds its protocol, the columns of `Timing.row`, and: fps (uint8 image to class ids), miou, `miou_cost`, the
    mIoU that it loses against the plain network, `changed`, the share of the timed image's pixels whose class differs
    from that network's, `own_ratio`, its speed relative to float32 of the same backend (the precisions take turns), and
    `float_layers`, which int8 leaves in float.

    Args:
        scored: the split that is scored; its first image is timed, at the protocol's size.
        calibration: the split whose images give the activation ranges of int8.
        limit: number of scored images, evenly spaced; None for all.
        stopwatch: options of `time_in_turns`.

    Raises ValueError for an unknown backend, and if `calibration` and `scored` share images.
    """
    _check("backend", backends, BACKENDS)
    device, size = next(model.parameters()).device, scored.protocol.size
    examples, image = calibration_images(model, calibration, scored), at_size(scored[0][0], size)[None].to(device)
    x = model.preprocess(image)
    with torch.inference_mode():
        expected = class_ids(model(x))
    options = {"batch_size": 1, "limit": limit, "progress": False}
    plain = evaluate(model, scored, **options).row()["miou"]
    network = {"network": model.config["name"], "revision": model.config["revision"]}
    for backend in dict.fromkeys(backends):
        runs, calls = {}, {}
        for method in _methods([backend], precisions):
            example = examples if method[1] == "int8" else x
            runs[method] = optimize_for_inference(model, example, backend, precision=method[1], verbose=False)
            calls[method] = partial(_end_to_end, runs[method], model.preprocess, image)
        timings = time_in_turns(calls, device, **stopwatch) if calls else {}
        for method, timing in timings.items():
            score = evaluate(runs[method], scored, **options).row()
            own = timing.ratio_row(timings.get((backend, "float32")))
            yield {
                **{**network, "height": size[0], "width": size[1], "batch": 1},
                **timed("end to end", method, timing, 1),
                **{f"own_{key}": value for key, value in own.items()},
                **{key: score[key] for key in SCORED if key in score},
                "miou_cost": plain - score["miou"],
                "changed": float((class_ids(runs[method](x)) != expected).float().mean()),
                "float_layers": ", ".join(runs[method].float_layers),
                **session(device),
            }
