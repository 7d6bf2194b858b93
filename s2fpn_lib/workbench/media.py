"""Finding and naming image and video files, reading videos (with PyAV, an extra), and writing both atomically."""

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from s2fpn_lib.data.images import ImageError, read_image, too_large
from s2fpn_lib.runs import atomic_file

LOCAL = {"protocol_whitelist": "file"}  # of FFmpeg: a playlist that is named like a video opens no address
VIDEO_SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"}


class MediaError(ImageError):
    """A video or a folder of files cannot be read. The message names the path and the reason."""


def find_media(source: Path, *, leave_out: Path) -> tuple[list[Path], list[tuple[Path, str]]]:
    """The files to predict, sorted, and what was left out: (file or folder, reason).

    source: a file, or a folder whose subfolders count. leave_out: a folder that does not count: that of the results.
    Raises FileNotFoundError, and MediaError for a folder without a file to predict.
    """
    if source.is_file():
        return [source], []
    if not source.is_dir():
        raise FileNotFoundError(f"{source} does not exist: give an image, a video, or a folder of them")
    results = leave_out.resolve()
    if results in (source.resolve(), *source.resolve().parents):
        raise MediaError(f"{source} lies in the folder of the results, {leave_out}: choose another one")
    found, left_out, unreadable = [], [], []
    for parent, folders, files in os.walk(source, onerror=unreadable.append):
        for path in [Path(parent, name) for name in folders]:
            if path.is_symlink():
                reason = "link to a folder: links are not followed"
            elif path.resolve() == results or path.name.startswith("."):
                kind = "folder of the results" if path.resolve() == results else "hidden folder"
                reason = f"{kind}; files in it: {sum(len(inside) for _, _, inside in os.walk(path))}"
            else:
                continue
            left_out.append((path, reason))
            folders.remove(path.name)
        for path in [Path(parent, name) for name in files]:
            if path.name.startswith("."):
                left_out.append((path, "hidden file"))
            elif not path.is_file():
                left_out.append((path, "not a file (a broken link or a device)"))
            else:
                found.append(path)
    left_out += [(Path(error.filename), f"the folder cannot be read ({error.strerror})") for error in unreadable]
    if not found:
        reasons = "".join(f"\n  {path}: {reason}" for path, reason in left_out[:20])
        raise MediaError(f"{source} holds no file: give an image, a video, or a folder of them{reasons}")
    return sorted(found), sorted(left_out)


def result_names(media: Sequence[Path], source: Path) -> dict[Path, str]:
    """The name of each file's results: its path in `source`, without its suffix where no other file claims that.

    The results of an image are files NAME.png; those of a video are NAME.mp4 and a folder NAME. No two share a path or
    lie inside each other, also on a file system that ignores case: "a", "a_jpg", "a_jpg-2".
    """
    stems = {path: (path.relative_to(source) if path != source else Path(path.name)).with_suffix("") for path in media}
    counts = Counter(str(stem).casefold() for stem in stems.values())
    shared = {path: counts[str(stem).casefold()] > 1 for path, stem in stems.items()}
    taken, folders, names = set(), set(), {}
    for path in sorted(media, key=lambda path: (shared[path], is_video(path))):
        long = f"{stems[path]}_{path.suffix.lstrip('.').lower()}"
        numbered = (f"{long}-{number}" for number in itertools.count(2))
        for name in itertools.chain([] if shared[path] else [str(stems[path])], [long], numbered):
            lower = name.casefold()
            places = {lower, f"{lower}.mp4"} if is_video(path) else {f"{lower}.png"}
            parents = {str(parent) for parent in Path(lower).parents}
            if not (places & (taken | folders) or parents & taken):
                break
        taken |= places
        folders |= parents
        names[path] = name
    return {path: names[path] for path in media}


def is_video(path: Path) -> bool:
    """Whether the file's suffix is that of a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def video_frames(path: Path) -> Iterator[tuple[int, Callable[[], np.ndarray]]]:
    """(number from 0, function that returns the upright (H, W, 3) uint8 RGB pixels) of every frame, or MediaError."""
    av = _pyav(path)
    number = -1
    try:
        with av.open(str(path), options=LOCAL) as container:
            for number, frame in enumerate(container.decode(video=0) if container.streams.video else ()):
                if Image.MAX_IMAGE_PIXELS and frame.width * frame.height > Image.MAX_IMAGE_PIXELS:
                    raise MediaError(too_large(path, f"{frame.width} x {frame.height}"))
                yield number, partial(_upright, frame)
    except (av.FFmpegError, OSError) as error:
        raise MediaError(f"{path}: no readable video ({error})") from error
    if number < 0:
        raise MediaError(f"{path}: the file holds no video frame")


def _upright(frame: Any) -> np.ndarray:
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4))


def video_rate(path: Path) -> Fraction:
    """Frames per second of a video that `video_frames` reads; 25 if the file does not state it."""
    with _pyav(path).open(str(path), options=LOCAL) as container:
        return container.streams.video[0].average_rate or Fraction(25)


def write_png(path: str | Path, pixels: np.ndarray, **texts: str) -> None:
    """Writes an (H, W) or (H, W, 3) uint8 array, atomically. texts: entries of the file's text chunks."""
    chunks = PngInfo()
    for key, text in texts.items():
        chunks.add_text(key, text)
    with atomic_file(path) as file:
        Image.fromarray(pixels).save(file, "PNG", pnginfo=chunks)


def write_video(path: Path, pictures: Sequence[Path], rate: Fraction) -> None:
    """Writes image files of one size as an H.264 .mp4, `rate` frames per second, atomically; ImageError if it fails."""
    av = _pyav(path)
    try:
        with atomic_file(path) as file, av.open(file, "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=rate, options={"crf": "20"})
            stream.pix_fmt = "yuv420p"
            for number, picture in enumerate(pictures):
                pixels = read_image(picture)
                height, width = (n - n % 2 for n in pixels.shape[:2])  # yuv420p has no odd sizes
                if number == 0:
                    stream.height, stream.width = height, width
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels[:height, :width]), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    except av.FFmpegError as error:
        raise MediaError(f"{path}: the video cannot be written ({error})") from error


def _pyav(path: Path) -> ModuleType:
    try:
        import av
    except ImportError as error:
        advice = "pip install 's2fpn-workbench[video]', or give a folder of its frames"
        raise MediaError(f"{path}: videos need PyAV: {advice}") from error
    return av
