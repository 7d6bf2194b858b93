"""Reading image and label files, for datasets, prediction, and the inspector alike."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps


class ImageError(ValueError):
    """A file cannot be read as an image or a label; the message names the file and the reason."""


def read_image(path: str | Path) -> np.ndarray:
    """RGB pixels of an image file, (H, W, 3) uint8, in the orientation that its EXIF data states.

    16-bit grayscale is scaled from 0..65535 to 0..255, transparency is dropped, and a file with several frames gives
    its first one. Raises ImageError if the file is missing, damaged, or holds floating-point pixels, whose range is
    unknown.
    """
    image = _open(path)
    if image.mode.startswith("I"):  # grayscale with 16 or 32 bits
        gray = (np.asarray(image).astype(np.int64).clip(0, 65535) / 257).round().astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=2)  # (H, W) -> (H, W, 3)
    return np.array(image.convert("RGB"))


def read_label(path: str | Path) -> np.ndarray:
    """Pixels of a label file as uint8: ids (H, W) of a grayscale or palette image, colors (H, W, 3) of any other.

    Raises ImageError as `read_image` does, and if the ids of a 16-bit file do not fit into 8 bits.
    """
    image = _open(path)
    if image.mode == "LA":
        image = image.convert("L")
    elif image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
        image = image.convert("RGB")
    pixels = np.array(image)
    if pixels.min() < 0 or pixels.max() > 255:
        raise ImageError(f"{path}: class ids run from {pixels.min()} to {pixels.max()}, which do not fit into 8 bits")
    return pixels.astype(np.uint8)


def read_ids(path: str | Path) -> np.ndarray:
    """The ids (H, W) of a label file; ImageError, as in `read_label`, also for a label in colors."""
    pixels = read_label(path)
    if pixels.ndim != 2:
        raise ImageError(f"{path}: expected one channel of class ids, found a color image")
    return pixels


def _open(path: str | Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            if image.mode == "F":
                raise ValueError("floating-point pixels have no known range; save the image with 8 or 16 bits")
            return ImageOps.exif_transpose(image)
    except FileNotFoundError:
        raise ImageError(f"{path}: file is missing") from None
    except Exception as error:  # Pillow's readers raise errors of any type for damaged files
        raise ImageError(f"{path}: cannot be decoded ({str(error) or type(error).__name__})") from error
