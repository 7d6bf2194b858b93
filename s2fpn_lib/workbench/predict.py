"""Predictions for pictures and videos of any size, as files: masks, overlays, label PNGs and areas.

    report = predict(model, "holiday/", "out/", get_protocol("camvid-segnet-360x480"))

`out` then holds, for every picture, `train_ids/NAME.png` (the class ids), `colour/NAME.png`, `overlay/NAME.png` and,
for Cityscapes, `label_ids/NAME.png` (what its benchmark takes); for a video the same of every frame, in a folder NAME,
and `overlay/NAME.mp4`; besides, `areas.csv` and `skipped.csv`.

It may be stopped at any time: started again, it goes on after the last finished picture.
"""

from __future__ import annotations

import functools
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from s2fpn_lib.data import Protocol
from s2fpn_lib.data.cityscapes import to_label_ids
from s2fpn_lib.evaluate import at_size, predict_logits
from s2fpn_lib.model import S2FPN
from s2fpn_lib.model.s2fpn import MIN_SIZE
from s2fpn_lib.runs import read_json, write_atomic, write_json
from s2fpn_lib.viz.images import colorize, overlay
from s2fpn_lib.workbench.media import (
    MediaError,
    find_media,
    is_video,
    read_picture,
    video_frames,
    video_summary,
    write_png,
    write_video,
)

# Rows of the picture whose scores at its own size are in memory at a time
ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class PredictionReport:
    """What `predict` did.

    Attributes:
        areas: one row a picture or frame: picture (its NAME), source, width, height, and % of its pixels by class.
        skipped: one row a file that could not be read: source, reason.
        predicted, kept: how many were predicted now, and how many were there from an earlier call.
    """

    areas: pd.DataFrame
    skipped: pd.DataFrame
    predicted: int
    kept: int


def predict(
    model: S2FPN,
    source: str | Path,
    out: str | Path,
    protocol: Protocol,
    *,
    size: str | Sequence[int] = "protocol",
    opacity: float = 0.55,
    every: int = 1,
    limit: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
    **views: Any,
) -> PredictionReport:
    """Predicts every picture and video frame of `source` and writes the results to `out`, at their own sizes.

    Args:
        source: a picture, a video, or a folder of them, subfolders included.
        protocol: classes and colours; what the model was trained on.
        size: what the network sees: "protocol" scales every picture to the protocol's height and keeps its aspect;
            "own" leaves it as it is; (height, width) resizes to that.
        opacity: of the class colours in the overlay.
        every: of a video, predict every n-th frame.
        limit: stop after so many pictures and frames, 0 or None: none.
        overwrite: predict again what `out` holds already. A source that is newer than its result is predicted again
            anyway.
        views: scales, flip, window, overlap, amp of `predict_logits`.

    Raises:
        FileNotFoundError: no such source. ValueError: options that make no sense, a model of other classes, an `out`
            that holds results of other settings, and (MediaError) nothing that can be read.
    """
    _check(model, protocol, size, every)
    out = Path(out)
    media = find_media(source, leave_out=out)
    names = _names(media, Path(source).expanduser())
    settings = {"weights": _fingerprint(model), "protocol": protocol.name, "size": size, "every": every}
    _claim(out, settings | {"opacity": opacity, **views}, overwrite)
    results = _Results(out, protocol, opacity)
    rows: list[dict[str, Any]] = []
    skipped: list[dict[str, str]] = []
    predicted = 0
    watched = sys.stdout.isatty() or "ipykernel" in sys.modules
    options = {"unit": "picture", "mininterval": 1, "file": sys.stdout, "disable": not (progress and watched)}
    try:
        for path, name, load in tqdm(_pictures(media, names, every, skipped), total=_count(media, every), **options):
            ids = None if overwrite else results.finished(name, path)
            if ids is None:
                try:
                    image = load()
                except MediaError as error:
                    skipped.append({"source": str(path), "reason": str(error)})
                    continue
                ids = predict_ids(model, image, network_size(image.shape[-2:], size, protocol), **views)
                results.write(name, image, ids)
                predicted += 1
            rows.append(_areas(name, path, ids, protocol))
            if len(rows) == limit:
                break
        for video in filter(is_video, media):
            frames = [row["picture"] for row in rows if row["source"] == str(video)]
            skipped += results.overlay_video(video, frames, every)
    finally:
        areas = pd.DataFrame(rows, columns=["picture", "source", "width", "height", *protocol.classes])
        problems = pd.DataFrame(skipped, columns=["source", "reason"])
        write_atomic(out / "areas.csv", areas.to_csv(index=False, float_format="%.4f"))
        write_atomic(out / "skipped.csv", problems.to_csv(index=False))
    if not rows:
        raise MediaError("nothing could be predicted:\n  " + "\n  ".join(problems["reason"]))
    if progress and not watched:
        print(f"{len(rows)} pictures, {predicted} of them predicted now, {len(skipped)} problems; in {out}")
    return PredictionReport(areas, problems, predicted, len(rows) - predicted)


def predict_ids(model: S2FPN, image: Tensor, size: tuple[int, int], **views: Any) -> Tensor:
    """(3, H, W) uint8 -> (H, W) uint8 class ids; the network sees it at `size`. views: see `predict_logits`."""
    return ids_at_size(predict_logits(model, at_size(image, size)[None], **views), image.shape[-2:])


def ids_at_size(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Class ids of (1, K, h, w) scores resized bilinearly to `size`: (H, W) uint8 on the CPU.

    Row band by row band, because the scores of a large photograph at its own size are gigabytes.
    """
    height, width = size
    rows = scores.shape[-2]
    wide = F.interpolate(scores, size=(rows, width), mode="bilinear", align_corners=False)
    center = ((torch.arange(height, device=scores.device) + 0.5) * rows / height - 0.5).clamp(0, rows - 1)
    above = center.floor().long()
    below = (above + 1).clamp(max=rows - 1)
    weight = (center - above)[:, None]
    bands = []
    for top in range(0, height, ROWS_AT_ONCE):
        band = slice(top, top + ROWS_AT_ONCE)
        mixed = torch.lerp(wide[0, :, above[band]], wide[0, :, below[band]], weight[band])  # (K, rows, W)
        bands.append(mixed.max(0).indices.to("cpu", torch.uint8))
    return torch.cat(bands)


def network_size(own: Sequence[int], size: str | Sequence[int], protocol: Protocol) -> tuple[int, int]:
    """(height, width) at which the network sees a picture of `own` size; see `predict`. No side is under 32 pixels."""
    height, width = own
    if not isinstance(size, str):
        return tuple(size)
    factor = protocol.size[0] / height if size == "protocol" else 1.0
    factor = max(factor, MIN_SIZE / height, MIN_SIZE / width)
    return max(MIN_SIZE, round(height * factor)), max(MIN_SIZE, round(width * factor))


class _Results:
    """The files of one `out` folder."""

    def __init__(self, out: Path, protocol: Protocol, opacity: float) -> None:
        self.out, self.protocol, self.opacity = out, protocol, opacity
        self.kinds = ("label_ids",) if protocol.dataset == "cityscapes" else ()

    def finished(self, name: str, source: Path) -> Tensor | None:
        """The ids of a picture that is done, None where it is not, or where its source is newer."""
        files = [self.out / kind / f"{name}.png" for kind in ("train_ids", "colour", "overlay", *self.kinds)]
        if not all(file.exists() for file in files) or files[0].stat().st_mtime < source.stat().st_mtime:
            return None
        try:
            with Image.open(files[0]) as stored:
                return torch.from_numpy(np.array(stored))
        except (OSError, SyntaxError):  # damaged on the disk
            return None

    def write(self, name: str, image: Tensor, ids: Tensor) -> None:
        write_png(self.out / "colour" / f"{name}.png", colorize(ids, self.protocol))
        write_png(self.out / "overlay" / f"{name}.png", overlay(image, ids, self.protocol, self.opacity))
        if "label_ids" in self.kinds:
            write_png(self.out / "label_ids" / f"{name}.png", to_label_ids(ids.numpy()))
        write_png(self.out / "train_ids" / f"{name}.png", ids.numpy())

    def overlay_video(self, source: Path, frames: list[str], every: int) -> list[dict[str, str]]:
        """Puts the overlays of a video's frames together; what went wrong, as rows of `skipped`."""
        if not frames:
            return []
        target = self.out / "overlay" / f"{Path(frames[0]).parent}.mp4"
        pictures = [self.out / "overlay" / f"{frame}.png" for frame in frames]
        newest = max(picture.stat().st_mtime for picture in pictures)
        if target.exists() and target.stat().st_mtime >= newest:
            return []
        try:
            write_video(target, pictures, video_summary(source)[1] / every)
        except MediaError as error:
            return [{"source": str(source), "reason": f"frames are done, but not {target.name}: {error}"}]
        return []


def _pictures(
    media: list[Path], names: dict[Path, str], every: int, skipped: list[dict[str, str]]
) -> Iterator[tuple[Path, str, Callable[[], Tensor]]]:
    """(file, name, function that gives the picture); what a video's file hides goes to `skipped`."""
    for path in media:
        if not is_video(path):
            yield path, names[path], functools.partial(read_picture, path)
            continue
        try:
            for number, frame in video_frames(path, every=every):
                yield path, f"{names[path]}/{number:06d}", lambda frame=frame: frame
        except MediaError as error:
            skipped.append({"source": str(path), "reason": str(error)})


def _count(media: list[Path], every: int) -> int | None:
    """How many pictures and frames there are to come; None where a video does not say."""
    total = 0
    for path in media:
        frames = 1
        if is_video(path):
            try:
                frames = -(-video_summary(path)[0] // every)
            except MediaError:
                continue  # listed when its turn comes
        if not frames:
            return None
        total += frames
    return total


def _names(media: list[Path], source: Path) -> dict[Path, str]:
    """The name of each file's results: its path in `source` without suffix, or with it where two would be the same."""
    inner = {path: path.relative_to(source) if path != source else Path(path.name) for path in media}
    stems = {path: str(short.with_suffix("")) for path, short in inner.items()}
    counts = Counter(stems.values())
    return {
        path: stem if counts[stem] == 1 else f"{stem}_{path.suffix.lstrip('.').lower()}" for path, stem in stems.items()
    }


def _areas(name: str, source: Path, ids: Tensor, protocol: Protocol) -> dict[str, Any]:
    height, width = ids.shape
    percent = 100 * torch.bincount(ids.flatten().long(), minlength=protocol.num_classes).double() / ids.numel()
    shares = dict(zip(protocol.classes, percent.tolist(), strict=True))
    return {"picture": name, "source": str(source), "width": width, "height": height, **shares}


def _fingerprint(model: S2FPN) -> str:
    """12 hex digits that name the network and its weights."""
    digest = hashlib.sha256(repr(sorted(model.config.items())).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:12]


def _claim(out: Path, settings: dict[str, Any], overwrite: bool) -> None:
    """Notes the settings in `out`; ValueError where it holds predictions of other ones."""
    settings = json.loads(json.dumps(settings))  # tuples become lists, as they are read back
    path = out / "settings.json"
    if path.exists() and not overwrite:
        before = read_json(path)
        changed = sorted(key for key in before.keys() | settings.keys() if before.get(key) != settings.get(key))
        if changed:
            raise ValueError(
                f"{out} holds predictions made with other settings ({', '.join(changed)}): choose another folder, or "
                "overwrite=True to predict again"
            )
    write_json(path, settings)


def _check(model: S2FPN, protocol: Protocol, size: str | Sequence[int], every: int) -> None:
    if model.num_classes != protocol.num_classes:
        raise ValueError(
            f"the model gives {model.num_classes} classes, {protocol.name} has {protocol.num_classes}: give the "
            "protocol of the dataset it was trained on"
        )
    known = size in ("protocol", "own") if isinstance(size, str) else len(size) == 2 and min(size) >= MIN_SIZE
    if not known:
        raise ValueError(f'size is {size!r}; use "protocol", "own" or (height, width) from {MIN_SIZE} pixels up')
    if every < 1:
        raise ValueError(f"every is {every}: of a video every n-th frame is predicted, n from 1 up")
