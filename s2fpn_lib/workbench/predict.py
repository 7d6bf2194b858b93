"""Predictions for images and videos of any size, as files: class ids, overlays, and the area of each class.

    report = predict(model, "holiday/", "out/", get_protocol("camvid-segnet-360x480"))

For every image, `out` then holds `train_ids/NAME.png` (the class ids), `colour/NAME.png`, `overlay/NAME.png`, and for
Cityscapes `label_ids/NAME.png` (the benchmark's format); for a video the same of every frame, in a folder NAME, and
`overlay/NAME.mp4`. `areas.csv` lists what was predicted, and `skipped.csv` everything else in the source and why.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from s2fpn_lib.data import PROTOCOLS, Protocol
from s2fpn_lib.data.files import to_label_ids
from s2fpn_lib.data.images import ImageError, read_ids, read_image
from s2fpn_lib.evaluate import progress_bar, require_classes
from s2fpn_lib.model import S2FPN, hub
from s2fpn_lib.model.s2fpn import MIN_SIZE
from s2fpn_lib.model.tta import at_size, predict_logits
from s2fpn_lib.runs import read_json, remove_leftovers, write_atomic, write_json
from s2fpn_lib.viz.images import colorize, overlay
from s2fpn_lib.workbench import media
from s2fpn_lib.workbench.media import MediaError, is_video, write_png

ROWS_AT_ONCE = 256  # rows of the image whose scores at its own size are in memory at a time
SHOWN = 20  # reasons in an error
SOURCE = "source-sha256"  # text in train_ids/NAME.png: of the file that it was made from


class PredictionReport(NamedTuple):
    areas: pd.DataFrame  # per image or frame: picture (its NAME), source, width, height, and % of its pixels per class
    skipped: pd.DataFrame  # per file, folder, or part of a video that was not predicted: source, reason
    predicted: int  # images predicted by this call
    kept: int  # images found from an earlier call


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
    **views: Any,
) -> PredictionReport:
    """Predicts every image and video frame of `source` and writes the results to `out`, at their own sizes.

    An interrupted call can be repeated: it continues after the last finished image.

    Args:
        source: an image, a video, or a folder of them, including subfolders.
        protocol: classes and colors of the dataset that the model was trained on.
        size: what the network sees: "protocol" scales each image to the protocol's height and keeps its aspect ratio;
            "own" leaves it as it is; (height, width) resizes to that.
        every, limit: of a video, each n-th frame; the most images and frames, 0 or None: no limit.
        overwrite: predict again what `out` already holds. A source whose content has changed always is.
        views: scales, flip, window, overlap, amp of `predict_logits`.

    Raises FileNotFoundError for the source; ValueError for invalid options, a model with other classes, or an `out`
    with results of other settings; MediaError if nothing could be read.
    """
    require_classes(model, protocol)
    network_size(protocol.size, size, protocol)  # raises an error for an invalid size
    if every < 1:
        raise ValueError(f"every is {every}: every n-th frame of a video is predicted, with n of at least 1")
    source, out = Path(source).expanduser(), Path(out)
    found, left_out = media.find_media(source, leave_out=out)
    names = media.result_names(found, source)
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    weights = hub.digest(tensors, model.config)[:12]
    settings = {"weights": weights, "protocol": protocol.name, "size": size, "every": every, "opacity": opacity}
    _claim(out, settings | views, overwrite)
    kinds = ["colour", "overlay", "train_ids", *(["label_ids"] if protocol.dataset == "cityscapes" else [])]
    rows: list[dict[str, Any]] = []
    skipped = [(str(path), reason) for path, reason in left_out]
    predicted, digest = 0, functools.cache(_digest)
    remove_leftovers(out)
    try:
        with progress_bar(len(names), unit="image") as bar, closing(_images(names, every, skipped)) as images:
            for path, name, load in images:
                if limit and len(rows) == limit:
                    rest = dict.fromkeys(found[found.index(path) :], "")
                    if rows[-1]["source"] == str(path):  # a video
                        rest[path] = f"frames from number {name.rpartition('/')[2]} on are "
                    skipped += [(str(each), f"{part}beyond limit = {limit}") for each, part in rest.items()]
                    break
                files = {kind: out / kind / f"{name}.png" for kind in kinds}
                try:
                    ids = _finished(files, digest(path)) if not overwrite else None
                    image = torch.from_numpy(load()).permute(2, 0, 1) if ids is None else None  # (H, W, 3) -> (3, H, W)
                except ImageError as error:
                    skipped.append((str(path), str(error).removeprefix(f"{path}: ")))
                    continue
                if ids is None:
                    seen = at_size(image, network_size(image.shape[-2:], size, protocol))
                    ids = ids_at_size(predict_logits(model, seen[None], **views), image.shape[-2:])
                    write_png(files["colour"], colorize(ids, protocol))
                    write_png(files["overlay"], overlay(image, ids, protocol, opacity))
                    if "label_ids" in files:
                        write_png(files["label_ids"], to_label_ids(ids.numpy()))
                    if is_video(path):  # of other frames
                        (out / "overlay" / f"{names[path]}.mp4").unlink(missing_ok=True)
                    write_png(files["train_ids"], ids.numpy(), **{SOURCE: digest(path)})
                    predicted += 1
                percent = 100 * np.bincount(ids.flatten(), minlength=protocol.num_classes) / ids.numel()
                shares = dict(zip(protocol.classes, percent, strict=True))
                height, width = ids.shape
                rows.append({"picture": name, "source": str(path), "width": width, "height": height, **shares})
                bar.update()
        for video in filter(is_video, names):
            frames = [out / "overlay" / f"{row['picture']}.png" for row in rows if row["source"] == str(video)]
            target = out / "overlay" / f"{names[video]}.mp4"
            if not frames or target.exists():
                continue
            try:
                media.write_video(target, frames, media.video_rate(video) / every)
            except ImageError as error:
                skipped.append((str(video), f"the frames are predicted, but {target.name} is not made: {error}"))
    finally:
        areas = pd.DataFrame(rows, columns=["picture", "source", "width", "height", *protocol.classes])
        problems = pd.DataFrame(skipped, columns=["source", "reason"])
        write_atomic(out / "areas.csv", areas.to_csv(index=False, float_format="%.4f"))
        write_atomic(out / "skipped.csv", problems.to_csv(index=False))
    if not rows:
        reasons = "".join(f"\n  {path}: {reason}" for path, reason in skipped[:SHOWN])
        more = f"\n  and {len(skipped) - SHOWN} more" if len(skipped) > SHOWN else ""
        raise MediaError(f"nothing could be predicted:{reasons}{more}")
    return PredictionReport(areas, problems, predicted, len(rows) - predicted)


def ids_at_size(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Class ids of (1, K, h, w) scores resized bilinearly to `size`: (H, W) uint8 on the CPU.

    In bands of rows, because the scores of a large photograph at its own size take gigabytes: `F.grid_sample` computes
    at the pixel centers it is given what `F.interpolate` computes for a whole image.
    """
    ys, xs = ((2 * torch.arange(n, device=scores.device) + 1) / n - 1 for n in size)  # pixel centers in -1..1
    bands = []
    for band in ys.split(ROWS_AT_ONCE):
        grid = torch.stack(torch.meshgrid(xs, band, indexing="xy"), dim=-1)  # (rows, W, 2)
        resized = F.grid_sample(scores, grid[None], padding_mode="border", align_corners=False)
        bands.append(resized[0].max(0).indices.to("cpu", torch.uint8))
    return torch.cat(bands)


def network_size(own: Sequence[int], size: str | Sequence[int], protocol: Protocol) -> tuple[int, int]:
    """(height, width), at least 32 pixels each, at which the network sees an image of size `own`; see `predict`."""
    height, width = own
    if size not in ("protocol", "own") and (isinstance(size, str) or len(size) != 2 or min(size) < MIN_SIZE):
        raise ValueError(f'size is {size!r}; use "protocol", "own", or (height, width) of at least {MIN_SIZE} pixels')
    if not isinstance(size, str):
        return tuple(size)
    factor = protocol.size[0] / height if size == "protocol" else 1.0
    if size == "protocol" and protocol.name not in PROTOCOLS:
        factor = min(factor, protocol.size[1] / width)  # an own dataset's images are fitted into the size
    factor = max(factor, MIN_SIZE / height, MIN_SIZE / width)
    return max(MIN_SIZE, round(height * factor)), max(MIN_SIZE, round(width * factor))


def _images(
    names: dict[Path, str], every: int, skipped: list[tuple[str, str]]
) -> Generator[tuple[Path, str, Callable[[], np.ndarray]]]:
    """(file, name, function that returns the pixels) of each image and frame; what is left out goes to `skipped`."""
    for path, name in names.items():
        if not is_video(path):
            yield path, name, functools.partial(read_image, path)
            continue
        number = -1
        try:
            for number, load in media.video_frames(path):
                if number % every == 0:
                    yield path, f"{name}/{number:06d}", load
        except MediaError as error:
            skipped.append((str(path), str(error).removeprefix(f"{path}: ")))
        finally:  # also where the limit ends the loop
            if unused := number - number // every:
                skipped.append((str(path), f"{unused} of its first {number + 1} frames: every = {every}"))


def _digest(path: Path) -> str:
    """The SHA-256 of a file, which tells it from another one also where the clock was set back."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror})") from error


def _finished(files: dict[str, Path], source: str) -> Tensor | None:
    """The ids (H, W) of an image whose files are complete and made from this source; None otherwise."""
    try:
        ids = torch.from_numpy(read_ids(files["train_ids"]))
        with Image.open(files["train_ids"]) as picture:
            known = picture.info.get(SOURCE)
    except (OSError, ValueError):  # missing, or damaged on the disk
        return None
    return ids if known == source and all(map(Path.exists, files.values())) else None


def _claim(out: Path, settings: dict[str, Any], overwrite: bool) -> None:
    """Writes the settings to `out`; ValueError where it holds predictions with other settings."""
    settings = json.loads(json.dumps(settings))  # tuples become lists, as they are read back
    path = out / "settings.json"
    before = read_json(path) if path.exists() and not overwrite else settings
    changed = sorted(key for key in before | settings if before.get(key) != settings.get(key))
    if changed:
        raise ValueError(
            f"{out} holds predictions made with other settings ({', '.join(changed)}): choose another folder, or "
            "overwrite=True to predict again"
        )
    write_json(path, settings)
