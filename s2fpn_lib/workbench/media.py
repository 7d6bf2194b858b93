"""Pictures and videos of any kind as uint8 RGB, and back into files that are complete or not there.

Pictures are read by Pillow, videos by PyAV, which is an extra: pip install 's2fpn-workbench[video]'.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from s2fpn_lib.runs import atomic_file

VIDEO_SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"}


class MediaError(ValueError):
    """A picture or video cannot be read; the message names the file and says why."""


def find_media(source: str | Path, *, leave_out: str | Path | None = None) -> list[Path]:
    """The file `source`, or every file in the folder and its subfolders, sorted; hidden ones are left out.

    leave_out: a folder whose files do not count, such as the one that results are written to.
    Raises FileNotFoundError for a path that does not exist and MediaError for a folder without files.
    """
    source = Path(source).expanduser()
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise FileNotFoundError(f"{source} does not exist: give a picture, a video or a folder of them")
    ignored = Path(leave_out).resolve() if leave_out else None
    found = [path for path in sorted(source.rglob("*")) if path.is_file() and _visible(path.relative_to(source))]
    found = [path for path in found if ignored is None or ignored not in path.resolve().parents]
    if not found:
        raise MediaError(f"{source} holds no file: give a picture, a video or a folder of them")
    return found


def is_video(path: Path) -> bool:
    """Whether a file's suffix says that it is a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def read_picture(path: str | Path) -> Tensor:
    """(3, H, W) uint8 RGB, upright as its EXIF orientation says; the first of several frames; MediaError if unreadable.

    16-bit grey is scaled from 0..65535; transparency is left out of account; floating-point pictures are refused.
    """
    try:
        with Image.open(path) as picture:
            pixels = _rgb(ImageOps.exif_transpose(picture))
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged files
        raise MediaError(f"{path}: no readable picture ({str(error) or type(error).__name__})") from error
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))  # (H, W, 3) -> (3, H, W)


def video_frames(path: str | Path, *, every: int = 1) -> Iterator[tuple[int, Tensor]]:
    """(number, (3, H, W) uint8 RGB) of every `every`-th frame, upright, numbers from 0.

    Raises MediaError, also after some frames where a file is damaged further on, and without PyAV.
    """
    av = _pyav(path)
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise MediaError(f"{path}: holds no video")
            number = -1
            for number, frame in enumerate(container.decode(video=0)):
                if number % every == 0:
                    pixels = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)
                    yield number, torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
            if number < 0:
                raise MediaError(f"{path}: holds no frame")
    except (av.FFmpegError, OSError) as error:
        raise MediaError(f"{path}: no readable video ({error})") from error


def video_summary(path: str | Path) -> tuple[int, Fraction]:
    """How many frames a video says that it has (0: unknown), and how many a second."""
    av = _pyav(path)
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise MediaError(f"{path}: holds no video")
            stream = container.streams.video[0]
            return stream.frames, stream.average_rate or Fraction(25)
    except (av.FFmpegError, OSError) as error:
        raise MediaError(f"{path}: no readable video ({error})") from error


def write_png(path: str | Path, pixels: np.ndarray) -> None:
    """Writes an (H, W) or (H, W, 3) uint8 array, atomically."""
    with atomic_file(path) as file:
        Image.fromarray(pixels).save(file, "PNG")


def write_video(path: str | Path, pictures: Sequence[Path], rate: Fraction) -> None:
    """Writes the pictures, all of one size, as an H.264 .mp4 of `rate` frames a second, atomically."""
    av = _pyav(path)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.mp4")  # FFmpeg seeks, and chooses the container by suffix
    try:
        with av.open(str(temporary), "w") as container:
            stream = container.add_stream("libx264", rate=rate, options={"crf": "20"})
            stream.pix_fmt = "yuv420p"
            for number, picture in enumerate(pictures):
                pixels = read_picture(picture).permute(1, 2, 0).numpy()  # (3, H, W) -> (H, W, 3)
                height, width = (n - n % 2 for n in pixels.shape[:2])  # yuv420p has no odd sizes
                if number == 0:
                    stream.height, stream.width = height, width
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels[:height, :width]), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        temporary.replace(path)
    except av.FFmpegError as error:
        raise MediaError(f"{path}: the video cannot be written ({error})") from error
    finally:
        temporary.unlink(missing_ok=True)


def _rgb(picture: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8."""
    if picture.mode == "F":
        raise ValueError("floating-point pixels have no known range: save it with 8 or 16 bits")
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        gray = np.clip(np.asarray(picture).astype(np.int64), 0, 65535)
        return np.repeat((gray / 257).round().astype(np.uint8)[..., None], 3, axis=2)
    return np.asarray(picture.convert("RGB"))


def _visible(path: Path) -> bool:
    return not any(part.startswith(".") for part in path.parts)


def _pyav(path: str | Path) -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise MediaError(
            f"{path}: videos need PyAV: pip install 's2fpn-workbench[video]', or give a folder of its frames"
        ) from error
    return av
