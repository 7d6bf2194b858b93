"""What a way to run a trained network costs and brings: its speed and its mIoU, of the same callable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from s2fpn_lib.data import SegmentationDataset
from s2fpn_lib.evaluate import CONVENTION, evaluate, spread
from s2fpn_lib.metrics import class_ids
from s2fpn_lib.model import S2FPN
from s2fpn_lib.optimize import BACKENDS, optimize_for_inference
from s2fpn_lib.speed import session
from s2fpn_lib.stopwatch import time_calls

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
    examples = torch.stack([calibration[i][0] for i in spread(len(calibration), CALIBRATION_IMAGES)]).to(device)
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
