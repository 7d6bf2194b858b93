"""Predictions for images and videos of any size, as files: class ids, overlays, and the area of each class.

    report = predict(model, "holiday/", "out/", get_protocol("camvid-segnet-360x480"))

For every image, `out` then holds `train_ids/NAME.png` (the class ids), `colour/NAME.png`, `overlay/NAME.png`, and for
Cityscapes `label_ids/NAME.png` (the benchmark's format); for a video the same of every frame, in a folder NAME, and
`overlay/NAME.mp4`. `areas.csv` and `skipped.csv` list what was predicted and what could not be read.

An interrupted call can be repeated: it continues after the last finished image.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from s2fpn_lib.data import Protocol
from s2fpn_lib.data.files import to_label_ids
from s2fpn_lib.data.images import ImageError, read_ids, read_image
from s2fpn_lib.evaluate import at_size, predict_logits
from s2fpn_lib.model import S2FPN
from s2fpn_lib.model.s2fpn import MIN_SIZE
from s2fpn_lib.progress import is_interactive, progress_bar
from s2fpn_lib.runs import read_json, write_atomic, write_json
from s2fpn_lib.viz.images import colorize, overlay
from s2fpn_lib.workbench.media import MediaError, find_media, is_video, video_frames, video_rate, write_png, write_video

# Rows of the image whose scores at its own size are in memory at a time
ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class PredictionReport:
    """The outcome of `predict`.

    Attributes:
        areas: one row per image or frame: picture (its NAME), source, width, height, and the percentage of its pixels
            in each class.
        skipped: one row per file that could not be read: source, reason.
        predicted, kept: number of images predicted by this call, and of those found from an earlier call.
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
    """Predicts every image and video frame of `source` and writes the results to `out`, at their own sizes.

    Args:
        source: an image, a video, or a folder of them, including subfolders.
        protocol: classes and colors of the dataset that the model was trained on.
        size: what the network sees: "protocol" scales each image to the protocol's height and keeps its aspect ratio;
            "own" leaves it as it is; (height, width) resizes to that.
        opacity: of the class colors in the overlay.
        every: of a video, predict every n-th frame.
        limit: stop after this number of images and frames; 0 or None: no limit.
        overwrite: predict again what `out` already holds. A source that is newer than its result always is.
        views: scales, flip, window, overlap, amp of `predict_logits`.

    Raises:
        FileNotFoundError: the source does not exist.
        ValueError: invalid options, a model with other classes, or an `out` with results of other settings.
        MediaError: nothing could be read.
    """
    _check(model, protocol, size, every)
    out = Path(out)
    media = find_media(source, leave_out=out)
    names = _names(media, Path(source).expanduser())
    settings = {"weights": _fingerprint(model), "protocol": protocol.name, "size": size, "every": every}
    _claim(out, settings | {"opacity": opacity, **views}, overwrite)
    kinds = ["colour", "overlay", "train_ids", *(["label_ids"] if protocol.dataset == "cityscapes" else [])]
    rows: list[dict[str, Any]] = []
    skipped: list[dict[str, str]] = []
    predicted = 0
    watched = progress and is_interactive()
    try:
        with progress_bar(len(media), enabled=watched, unit="image") as bar:
            for path, name, load in _images(media, names, every, skipped):
                files = {kind: out / kind / f"{name}.png" for kind in kinds}
                ids = None if overwrite else _finished(files, path)
                if ids is None:
                    try:
                        image = torch.from_numpy(load()).permute(2, 0, 1)  # (H, W, 3) -> (3, H, W)
                    except ImageError as error:
                        skipped.append({"source": str(path), "reason": str(error)})
                        continue
                    ids = predict_ids(model, image, network_size(image.shape[-2:], size, protocol), **views)
                    write_png(files["colour"], colorize(ids, protocol))
                    write_png(files["overlay"], overlay(image, ids, protocol, opacity))
                    if "label_ids" in files:
                        write_png(files["label_ids"], to_label_ids(ids.numpy()))
                    write_png(files["train_ids"], ids.numpy())
                    predicted += 1
                rows.append(_areas(name, path, ids, protocol))
                bar.update()
                if len(rows) == limit:
                    break
        for video in filter(is_video, media):
            frames = [out / "overlay" / f"{row['picture']}.png" for row in rows if row["source"] == str(video)]
            skipped += _overlay_video(video, out / "overlay" / f"{names[video]}.mp4", frames, every)
    finally:
        areas = pd.DataFrame(rows, columns=["picture", "source", "width", "height", *protocol.classes])
        problems = pd.DataFrame(skipped, columns=["source", "reason"])
        write_atomic(out / "areas.csv", areas.to_csv(index=False, float_format="%.4f"))
        write_atomic(out / "skipped.csv", problems.to_csv(index=False))
    if not rows:
        raise MediaError("nothing could be predicted:\n  " + "\n  ".join(problems["reason"]))
    if progress and not watched:
        print(f"{len(rows)} images, {predicted} of them predicted now, {len(skipped)} problems; in {out}")
    return PredictionReport(areas, problems, predicted, len(rows) - predicted)


def predict_ids(model: S2FPN, image: Tensor, size: tuple[int, int], **views: Any) -> Tensor:
    """(3, H, W) uint8 -> (H, W) uint8 class ids; the network sees the image at `size`. views: see `predict_logits`."""
    return ids_at_size(predict_logits(model, at_size(image, size)[None], **views), image.shape[-2:])


def ids_at_size(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Class ids of (1, K, h, w) scores resized bilinearly to `size`: (H, W) uint8 on the CPU.

    One band of rows at a time, because the scores of a large photograph at its own size take gigabytes.
    `F.interpolate` resizes a whole image only.
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
    """(height, width), at least 32 pixels each, at which the network sees an image of size `own`; see `predict`."""
    height, width = own
    if not isinstance(size, str):
        return tuple(size)
    factor = protocol.size[0] / height if size == "protocol" else 1.0
    factor = max(factor, MIN_SIZE / height, MIN_SIZE / width)
    return max(MIN_SIZE, round(height * factor)), max(MIN_SIZE, round(width * factor))


def _images(
    media: list[Path], names: dict[Path, str], every: int, skipped: list[dict[str, str]]
) -> Iterator[tuple[Path, str, Callable[[], np.ndarray]]]:
    """(file, name, function that returns the pixels) of each image and frame. Unreadable videos go to `skipped`."""
    for path in media:
        if not is_video(path):
            yield path, names[path], partial(read_image, path)
            continue
        try:
            for number, frame in video_frames(path, every=every):
                yield path, f"{names[path]}/{number:06d}", partial(np.ascontiguousarray, frame)
        except MediaError as error:
            skipped.append({"source": str(path), "reason": str(error)})


def _finished(files: dict[str, Path], source: Path) -> Tensor | None:
    """The ids (H, W) of an image whose files are complete and newer than their source; None otherwise."""
    ids = files["train_ids"]
    if not all(file.exists() for file in files.values()) or ids.stat().st_mtime < source.stat().st_mtime:
        return None
    try:
        return torch.from_numpy(read_ids(ids))
    except ImageError:  # damaged on the disk
        return None


def _overlay_video(source: Path, target: Path, frames: list[Path], every: int) -> list[dict[str, str]]:
    """Writes the overlays of a video's frames as a video, unless they already are. Returns rows of `skipped`."""
    if not frames:
        return []
    if target.exists() and target.stat().st_mtime >= max(frame.stat().st_mtime for frame in frames):
        return []
    try:
        write_video(target, frames, video_rate(source) / every)
    except ImageError as error:
        return [{"source": str(source), "reason": f"the frames are predicted, but {target.name} is not made: {error}"}]
    return []


def _names(media: list[Path], source: Path) -> dict[Path, str]:
    """The name of each file's results: its path in `source`, without its suffix unless two files would get the same."""
    inner = {path: path.relative_to(source) if path != source else Path(path.name) for path in media}
    counts = Counter(short.with_suffix("") for short in inner.values())
    return {
        path: str(stem) if counts[stem := short.with_suffix("")] == 1 else f"{stem}_{path.suffix.lstrip('.').lower()}"
        for path, short in inner.items()
    }


def _areas(name: str, source: Path, ids: Tensor, protocol: Protocol) -> dict[str, Any]:
    height, width = ids.shape
    percent = 100 * torch.bincount(ids.flatten().long(), minlength=protocol.num_classes).double() / ids.numel()
    shares = dict(zip(protocol.classes, percent.tolist(), strict=True))
    return {"picture": name, "source": str(source), "width": width, "height": height, **shares}


def _fingerprint(model: S2FPN) -> str:
    """12 hex digits that identify the network and its weights."""
    digest = hashlib.sha256(repr(sorted(model.config.items())).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:12]


def _claim(out: Path, settings: dict[str, Any], overwrite: bool) -> None:
    """Writes the settings to `out`; ValueError where it holds predictions with other settings."""
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
            f"the model has {model.num_classes} classes, {protocol.name} has {protocol.num_classes}: give the protocol "
            "of the dataset that it was trained on"
        )
    known = size in ("protocol", "own") if isinstance(size, str) else len(size) == 2 and min(size) >= MIN_SIZE
    if not known:
        raise ValueError(f'size is {size!r}; use "protocol", "own", or (height, width) of at least {MIN_SIZE} pixels')
    if every < 1:
        raise ValueError(f"every is {every}: every n-th frame of a video is predicted, with n of at least 1")
