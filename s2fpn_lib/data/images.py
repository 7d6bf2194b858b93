"""Reading image and label files, for datasets, prediction, and the inspector alike."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

# A color this close to a known one, in each channel, is that color after lossy compression or palette reduction
NEAR = 16
# Not all that Pillow reads: for EPS it runs Ghostscript, whatever the file's suffix
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF")
_PACK = np.array([1 << 16, 1 << 8, 1], dtype=np.uint32)  # (R, G, B) -> 24-bit code


class ImageError(ValueError):
    """A file cannot be read as an image or a label; the message names the file and the reason."""


def read_image(path: str | Path) -> np.ndarray:
    """RGB pixels of an image file, (H, W, 3) uint8, in the orientation that its EXIF data states.

    16-bit grayscale is scaled from 0..65535 to 0..255, transparency is dropped, and a file with several frames gives
    its first one. Raises ImageError for a missing or damaged file, no regular file, floating-point pixels, and, before
    any pixel is decoded, more than `PIL.Image.MAX_IMAGE_PIXELS` (89 million).
    """
    image = _open(path)
    if image.mode.startswith("I"):  # grayscale with 16 or 32 bits
        gray = (np.asarray(image).astype(np.int64).clip(0, 65535) / 257).round().astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=2)  # (H, W) -> (H, W, 3)
    return np.array(image.convert("RGB"))


def read_label(path: str | Path, *, palette_as_colors: bool = False) -> np.ndarray:
    """Pixels of a label file as uint8: ids (H, W) of a grayscale or palette image, colors (H, W, 3) of any other, and
    with `palette_as_colors` also of a palette image. Raises ImageError as `read_image`, and for ids above 255."""
    image = _open(path)
    if image.mode == "LA":
        image = image.convert("L")
    ids = ("1", "L") if palette_as_colors else ("1", "L", "P")
    if image.mode not in ids and not image.mode.startswith("I"):
        image = image.convert("RGB")
    pixels = np.array(image)
    pixels = pixels // image.info["stretch"] if image.mode == "L" else pixels
    if pixels.min() < 0 or pixels.max() > 255:
        raise ImageError(f"{path}: class ids run from {pixels.min()} to {pixels.max()}, which do not fit into 8 bits")
    return pixels.astype(np.uint8)


def read_ids(path: str | Path) -> np.ndarray:
    """The ids (H, W) of a label file; ImageError, as in `read_label`, also for a label in colors."""
    pixels = read_label(path)
    if pixels.ndim != 2:
        raise ImageError(f"{path}: expected one channel of class ids, found a color image")
    return pixels


def read_colors(path: str | Path) -> np.ndarray:
    """The colors (H, W, 3) of a label file, RGB or with a palette; ImageError for one channel of ids."""
    pixels = read_label(path, palette_as_colors=True)
    if pixels.ndim != 3:
        raise ImageError(f"{path}: expected a label in colors, found one channel of class ids")
    return pixels


def ids_of_colors(
    pixels: np.ndarray,
    ids: Mapping[tuple[int, int, int], int],
    path: str | Path,
    classes: Sequence[str] = (),
    unknown: int | None = None,
) -> np.ndarray:
    """The ids (H, W) uint8 of a label in colors (H, W, 3) uint8, by exact comparison.

    Args:
        ids: (R, G, B) in 0..255 -> id in 0..255.
        path, classes: the file, and the names of the ids 0, 1, ..., for the error message.
        unknown: the id of colors that are not in `ids`; None: they are an error.

    Raises ImageError for colors that are not in `ids`; with `unknown`, only for those within `NEAR` levels of a known
    color, which are damaged ones.
    """
    table, order = np.unique(np.array(list(ids), dtype=np.uint32) @ _PACK, return_index=True)
    codes = pixels.astype(np.uint32) @ _PACK  # (H, W, 3) -> (H, W)
    places = np.searchsorted(table, codes).clip(max=len(table) - 1)
    found = np.array(list(ids.values()), dtype=np.uint8)[order][places]
    wrong = table[places] != codes
    if wrong.any():
        if message := _unknown_colors(codes[wrong], ids, classes, only_near=unknown is not None):
            raise ImageError(f"{path}: {message}")
        found[wrong] = unknown
    return found


def _unknown_colors(
    codes: np.ndarray, ids: Mapping[tuple[int, int, int], int], classes: Sequence[str], only_near: bool
) -> str:
    """What an error says about the packed colors (n,) of a label that are in no table; empty for none to name."""
    values, counts = np.unique(codes, return_counts=True)
    colors = np.stack([values >> 16, values >> 8 & 255, values & 255], axis=1).astype(np.int64)  # (n, 3)
    known = np.array(list(ids), dtype=np.int64)  # (m, 3)
    distances = np.stack([np.abs(colors - color).max(axis=1) for color in known], axis=1)  # (n, m)
    near = distances.min(axis=1) <= NEAR
    shown = [place for place in np.argsort(-counts, kind="stable") if near[place] or not only_near]
    if not shown:
        return ""
    described = []
    for place in shown[:5]:
        text = f"{tuple(colors[place].tolist())} in {counts[place]} px"
        if near[place]:
            nearest = tuple(known[distances[place].argmin()].tolist())
            name = classes[ids[nearest]] if ids[nearest] < len(classes) else f"id {ids[nearest]}"
            text += f", near {nearest} ({name})"
        described.append(text)
    fix = (
        "Colors near a class color come from JPEG compression, interpolation, or a reduced palette: export the label "
        "again as RGB PNG, resized by nearest neighbor if at all."
        if near.any()
        else "Correct these pixels, or give the color a class or the ignored id in the dataset's description."
    )
    more = f" and {len(shown) - 5} more colors" if len(shown) > 5 else ""
    return f"holds colors of no class: {'; '.join(described)}{more}. {fix}"


def _open(path: str | Path) -> Image.Image:
    try:
        if isinstance(path, str | Path) and not Path(path).is_file():  # opening a named pipe would wait for a writer
            raise ImageError(f"{path}: {_what_is_there(Path(path))}")
        Image.init()  # fills `Image.OPEN`; Pillow 10 has no AVIF
        with Image.open(path, formats=[each for each in FORMATS if each in Image.OPEN]) as image:
            if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:  # only a warning there
                raise ImageError(too_large(path, f"{image.width} x {image.height}"))
            # Pillow stretches gray of 2 and 4 bits to 0..255, which is right for an image and not for ids
            packing = image.tile[0][3] if image.tile else ""
            image.info["stretch"] = {"L;2": 85, "L;4": 17}.get(packing if isinstance(packing, str) else "", 1)
            if image.mode == "F":
                raise ValueError("floating-point pixels have no known range; save the image with 8 or 16 bits")
            return ImageOps.exif_transpose(image)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:  # "Image size (10000000000 pixels) exceeds ..."
        raise ImageError(too_large(path, "".join(re.findall(r"\d+ pixels", str(error))[:1]))) from None
    except Exception as error:  # Pillow's readers raise errors of any type for damaged files
        raise ImageError(f"{path}: cannot be decoded ({str(error) or type(error).__name__})") from error


def _what_is_there(path: Path) -> str:
    """What an error says of a path that is not a file."""
    if path.exists():
        return f"is a {'folder' if path.is_dir() else 'pipe or device'}, not a file"
    return "is a link to a missing file, or to itself" if path.is_symlink() else "file is missing"


def too_large(path: str | Path, size: str) -> str:
    """What an error says of an image or video with more pixels than are read."""
    return (
        f"{path}: claims {size}, more than the {Image.MAX_IMAGE_PIXELS} pixels that are read; cut it into tiles, or, "
        "where the file can be trusted and the memory suffices, raise PIL.Image.MAX_IMAGE_PIXELS"
    )
