"""Finding image and video files, reading videos, and writing both atomically.

PyAV reads and writes videos. It is an extra: pip install 's2fpn-workbench[video]'. Images are read by
`s2fpn_lib.data.images`.
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image

from s2fpn_lib.data.images import ImageError, read_image
from s2fpn_lib.runs import atomic_file

VIDEO_SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"}


class MediaError(ImageError):
    """A video or a folder of files cannot be read. The message names the path and the reason."""


def find_media(source: Path, *, leave_out: Path) -> list[Path]:
    """The file `source`, or all files in the folder and its subfolders, sorted, without hidden ones.

    Args:
        leave_out: a folder whose files do not count: the one that results are written to.

    Raises:
        FileNotFoundError: the path does not exist.
        MediaError: the folder holds no file.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise FileNotFoundError(f"{source} does not exist: give an image, a video, or a folder of them")
    found = [
        path
        for path in sorted(source.rglob("*"))
        if path.is_file()
        and "/." not in f"/{path.relative_to(source).as_posix()}"
        and leave_out.resolve() not in path.resolve().parents
    ]
    if not found:
        raise MediaError(f"{source} holds no file: give an image, a video, or a folder of them")
    return found


def is_video(path: Path) -> bool:
    """Whether the file's suffix is that of a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def video_frames(path: Path, *, every: int = 1) -> Iterator[tuple[int, np.ndarray]]:
    """(number, (H, W, 3) uint8 RGB) of every `every`-th frame, upright; numbers start at 0.

    Raises:
        MediaError: PyAV is missing, or the file is damaged, possibly after some frames.
    """
    av = _pyav(path)
    number = -1
    try:
        with av.open(str(path)) as container:
            for number, frame in enumerate(container.decode(video=0) if container.streams.video else ()):
                if number % every == 0:
                    yield number, np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)
    except (av.FFmpegError, OSError) as error:
        raise MediaError(f"{path}: no readable video ({error})") from error
    if number < 0:
        raise MediaError(f"{path}: the file holds no video frame")


def video_rate(path: Path) -> Fraction:
    """Frames per second of a video that `video_frames` reads; 25 if the file does not state it."""
    with _pyav(path).open(str(path)) as container:
        return container.streams.video[0].average_rate or Fraction(25)


def write_png(path: str | Path, pixels: np.ndarray) -> None:
    """Writes an (H, W) or (H, W, 3) uint8 array, atomically."""
    with atomic_file(path) as file:
        Image.fromarray(pixels).save(file, "PNG")


def write_video(path: Path, pictures: Sequence[Path], rate: Fraction) -> None:
    """Writes image files of one size as an H.264 .mp4 with `rate` frames per second, atomically.

    Raises:
        ImageError: an image cannot be read, PyAV is missing (MediaError), or the video cannot be written (MediaError).
    """
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
        raise MediaError(
            f"{path}: videos need PyAV: pip install 's2fpn-workbench[video]', or give a folder of its frames"
        ) from error
    return av
