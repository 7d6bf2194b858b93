"""One content folder of the cache on disk: its format, how it is written whole or not at all, how it is read back."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import time
import uuid
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from s2fpn_lib.data.dataset import DatasetError, FileDataset, SegmentationDataset, read_arrays

FORMAT = 1
_CHUNK = 32  # samples decoded ahead of the writer, which bounds the memory of a build
_ABANDONED_S = 6 * 3600  # a build folder this old belongs to a process that was killed
_log = logging.getLogger(__name__)


class CacheSpaceError(OSError):
    """The disk has no room for the cache; nothing half-made is left."""


class Folder:
    """An open content folder. ValueError, KeyError or TypeError where its manifest or its size is damaged."""

    def __init__(self, path: Path) -> None:
        checksum, _, text = (path / "manifest.json").read_text(encoding="utf-8").partition("\n")
        if hashlib.sha256(text.removesuffix("\n").encode()).hexdigest() != checksum:
            raise ValueError("manifest.json does not match its checksum")
        manifest = json.loads(text)
        size = (path / "pixels.bin").stat().st_size
        if size != manifest["bytes"]:
            raise ValueError(f"pixels.bin has {size} bytes instead of {manifest['bytes']}")
        self.path, self.rows = path, manifest["samples"]
        # a plain array over the mapping, as slicing a memmap costs more; copy-on-write, as torch wants arrays writable
        self._pixels = np.memmap(path / "pixels.bin", dtype=np.uint8, mode="c").view(np.ndarray)
        self._verified = np.zeros(len(self.rows), dtype=bool)

    def arrays(self, index: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Image (H, W, 3) and label (H, W) as views into the file; None where the sample fails its checksum."""
        row = self.rows[index]
        (height, width), start = row["size"], row["offset"]
        flat = self._pixels[start : start + height * width * 4]
        if not self._verified[index]:
            if zlib.crc32(flat) != row["crc32"]:
                return None
            self._verified[index] = True
        image, label = flat[: height * width * 3], flat[height * width * 3 :]
        return image.reshape(height, width, 3), label.reshape(height, width)  # flat -> (H, W, 3), (H, W)


def build(dataset: SegmentationDataset, path: Path, sample_keys: list[str], earlier: Folder | None = None) -> Folder:
    """Write ``path`` aside and rename it into place; an equal folder that appeared meanwhile wins.

    Args:
        sample_keys: one digest of its source a sample.
        earlier: an older content folder; samples with the same key are copied from it instead of decoded.

    Raises:
        CacheSpaceError: no room on the disk.
        DatasetError: names every sample that cannot be decoded.
    """
    root = path.parent
    root.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(root)
    needed, free = _bytes_needed(dataset), shutil.disk_usage(root).free
    if needed > free:
        raise _no_space(dataset, root, needed, free)
    _log.info("building the cache of %s %s: %.1f GB in %s", dataset.name, dataset.split, needed / 1e9, path)
    aside = root / f".build-{path.name}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    aside.mkdir()
    try:
        rows, offset = [], 0
        with (aside / "pixels.bin").open("wb") as pixels:
            for key, (image, label) in zip(sample_keys, _decoded(dataset, sample_keys, earlier), strict=True):
                image, label = np.ascontiguousarray(image), np.ascontiguousarray(label)
                pixels.write(image)
                pixels.write(label)
                counts = np.bincount(label.reshape(-1), minlength=256)  # (H, W) -> (H * W,)
                values = np.flatnonzero(counts)
                rows.append(
                    {
                        "key": key,
                        "size": label.shape,
                        "offset": offset,
                        "crc32": zlib.crc32(label, zlib.crc32(image)),
                        "values": values.tolist(),
                        "counts": counts[values].tolist(),
                    }
                )
                offset += image.nbytes + label.nbytes
            pixels.flush()
            os.fsync(pixels.fileno())
        body = {
            "format": FORMAT,
            "dataset": dataset.name,
            "split": dataset.split,
            "bytes": offset,
            "samples": rows,
        }
        text = json.dumps(body)
        (aside / "manifest.json").write_text(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}\n")
        try:
            aside.rename(path)
        except OSError:
            return Folder(path)  # another process was first: fine, if what it left is whole
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_space(dataset, root, needed, shutil.disk_usage(root).free) from error
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return Folder(path)


def _decoded(
    dataset: SegmentationDataset, sample_keys: list[str], earlier: Folder | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every sample in order, decoded by threads; all broken files are named in one DatasetError."""
    problems: list[str] = []
    known = {row["key"]: index for index, row in enumerate(earlier.rows)} if earlier else {}

    def decode(index: int) -> tuple[np.ndarray, np.ndarray] | None:
        kept = earlier.arrays(known[sample_keys[index]]) if sample_keys[index] in known else None
        try:
            return kept or read_arrays(dataset, index)
        except DatasetError as error:
            problems.append(str(error))
            return None

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(dataset), _CHUNK):
            pairs = list(pool.map(decode, range(start, min(start + _CHUNK, len(dataset)))))
            if not problems:
                yield from pairs
    if problems:
        raise DatasetError(f"{len(problems)} samples cannot be read:", sorted(problems))


def _bytes_needed(dataset: SegmentationDataset) -> int:
    if not isinstance(dataset, FileDataset):
        return len(dataset) * read_arrays(dataset, 0)[1].size * 4
    total = 0
    for sample in dataset.samples:
        try:
            with Image.open(sample.image) as picture:  # reads the header only
                total += picture.width * picture.height * 4
        except (OSError, SyntaxError):
            continue  # decoding names it
    return total


def _no_space(dataset: SegmentationDataset, root: Path, needed: int, free: int) -> CacheSpaceError:
    return CacheSpaceError(
        errno.ENOSPC,
        f"the cache of {dataset.name} {dataset.split} needs {needed / 1e9:.2f} GB, but {root} has {free / 1e9:.2f} GB "
        "free. Make room, set S2FPN_CACHE to a folder on a larger disk, or open the dataset with cache=False",
    )


def _remove_abandoned(root: Path) -> None:
    for folder in root.glob(".build-*"):
        try:
            if time.time() - folder.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(folder, ignore_errors=True)
        except FileNotFoundError:
            continue  # its own process removed it
