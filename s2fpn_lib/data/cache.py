"""Decode once: a memory-mapped uint8 cache with one file per sample, named by the content of its sources.

The cache folder (``S2FPN_CACHE``, else ``~/.cache/s2fpn``) holds one folder per dataset and split::

    camvid-train-<paths>/index.json      size, times, and SHA-256 of every source file
    camvid-train-<paths>/<content>.bin   header and label counts (int64), image (H, W, 3), label (H, W)

Every file appears complete or not at all, so processes may build the same cache at once, and an interrupted build
continues where it stopped. A changed source file leads to another ``<content>``; files out of use are removed.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import time
import warnings
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from s2fpn_lib.data.dataset import DatasetError, FileDataset, SegmentationDataset
from s2fpn_lib.runs import atomic_file, write_atomic

FORMAT = "2"  # to be raised whenever decoding changes
_HEADER = 4 + 256  # int64: checksum of the rest of the header, checksum of the pixels, height, width, label counts
# A file that changes twice within one tick of the file system's clock keeps its times. As in Git's index, an entry is
# trusted only if the file was already this old when it was read.
_CLOCK_TICK_NS = 2_000_000_000
_log = logging.getLogger(__name__)


class CacheSpaceError(OSError):
    """The disk has no room for the cache."""


def cache_root() -> Path:
    """The folder of all caches: the environment variable S2FPN_CACHE, else ``~/.cache/s2fpn``."""
    return Path(os.environ.get("S2FPN_CACHE") or Path.home() / ".cache" / "s2fpn").expanduser()


def cached(dataset: SegmentationDataset, root: Path | None = None) -> SegmentationDataset:
    """``dataset`` read through the cache in ``root`` (default :func:`cache_root`), which is created when missing.

    Returns ``dataset`` itself, with a warning, where the folder is not writable or a file cannot be decoded.

    Raises:
        CacheSpaceError: the disk has no room for the cache.
    """
    root = root or cache_root()
    try:
        if isinstance(dataset, FileDataset):
            files = _files_by_source(dataset, root)
        elif hasattr(dataset, "cache_key"):
            folder = root / f"{dataset.name}-{dataset.split}-{_digest([FORMAT, dataset.cache_key()])}"
            files = [folder / f"{name}.bin" for name in dataset.names]
        else:
            return dataset
        _write_missing(dataset, files)
        return CachedDataset(dataset, files)
    except CacheSpaceError:
        raise
    except DatasetError as error:
        reason = f"the data has errors, see s2fpn_lib.data.check_dataset ({error})"
    except OSError as error:
        reason = f"{root} cannot be used ({error.strerror or error}); set S2FPN_CACHE to a writable folder"
    warnings.warn(f"No cache for {dataset.name} {dataset.split}: {reason}. Decoding on every access.", stacklevel=3)
    return dataset


class CachedDataset(SegmentationDataset):
    """The samples of ``source``, read from one cache file per sample.

    The checksum of each sample is verified when this process first reads it. A damaged file is written again.
    """

    def __init__(self, source: SegmentationDataset, files: list[Path]) -> None:
        self.source, self.files = source, files
        self.name, self.protocol, self.split = source.name, source.protocol, source.split
        self.names, self.drives, self.problems = source.names, source.drives, source.problems
        self._verified = np.zeros(len(files), dtype=bool)

    def arrays(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        (height, width), _, pixels = self._sample(index)
        area = height * width
        return pixels[: area * 3].reshape(height, width, 3), pixels[area * 3 :].reshape(height, width)

    def label_summary(self, index: int) -> tuple[tuple[int, int], np.ndarray]:
        size, counts, _ = self._sample(index, verify=False)
        return size, counts

    def label_source(self, index: int) -> str:
        return self.source.label_source(index)

    def _sample(self, index: int, verify: bool = True) -> tuple[tuple[int, int], np.ndarray, np.ndarray]:
        """Size, label counts (256,), and flat pixels; ``verify=False`` checks only the header and the file's size."""
        verify = verify and not self._verified[index]
        try:
            sample = _read(self.files[index], verify)
        except (OSError, ValueError) as error:
            warnings.warn(f"{self.files[index]}: the cache is damaged ({error}); building it again.", stacklevel=4)
            _write(self.source, index, self.files[index])
            sample = _read(self.files[index], verify)
        self._verified[index] |= verify
        return sample


def _read(file: Path, verify: bool) -> tuple[tuple[int, int], np.ndarray, np.ndarray]:
    # a plain array over the mapping, as slicing a memmap is slower; copy-on-write, as torch wants writable arrays
    content = np.memmap(file, dtype=np.uint8, mode="c").view(np.ndarray)
    header, pixels = content[: _HEADER * 8], content[_HEADER * 8 :]
    if len(header) < _HEADER * 8 or zlib.crc32(header[8:]) != header[:8].view(np.int64):
        raise ValueError("the header does not match its checksum")
    values = header.view(np.int64)
    checksum, height, width = values[1:4].tolist()
    if pixels.size != height * width * 4 or (verify and zlib.crc32(pixels) != checksum):
        raise ValueError("the pixels do not match their checksum")
    return (height, width), values[4:], pixels


def _write(dataset: SegmentationDataset, index: int, file: Path) -> None:
    image, label = dataset.arrays(index)
    pixels = np.concatenate([image.reshape(-1), label.reshape(-1)])  # (H, W, 3), (H, W) -> flat
    counts = np.bincount(label.reshape(-1), minlength=256)
    header = np.array([0, zlib.crc32(pixels), *label.shape, *counts], dtype=np.int64)
    header[0] = zlib.crc32(header[1:])
    with atomic_file(file) as output:
        output.write(header)
        output.write(pixels)


def _write_missing(dataset: SegmentationDataset, files: list[Path]) -> None:
    """Decode and write the samples that have no file yet, and remove files that belong to no sample."""
    folder = files[0].parent
    missing = {file: index for index, file in enumerate(files) if not file.exists()}
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        needed = len(missing) * dataset.arrays(next(iter(missing.values())))[1].size * 4
        free = shutil.disk_usage(folder).free
        _log.info("building the cache of %s %s: %.1f GB in %s", dataset.name, dataset.split, needed / 1e9, folder)
        try:
            if needed > free:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            with ThreadPoolExecutor() as pool:  # decoding releases the global interpreter lock
                list(pool.map(lambda item: _write(dataset, item[1], item[0]), missing.items()))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            for file in missing:
                file.unlink(missing_ok=True)
            raise CacheSpaceError(
                error.errno,
                f"the cache of {dataset.name} {dataset.split} needs {needed / 1e9:.2f} GB, but {folder} has "
                f"{free / 1e9:.2f} GB free. Make room, set S2FPN_CACHE to a folder on a larger disk, or open the "
                "dataset with cache=False",
            ) from error
    for file in set(folder.glob("*.bin")) - set(files):
        file.unlink(missing_ok=True)


def _files_by_source(dataset: FileDataset, root: Path) -> list[Path]:
    """The cache file of each sample; also updates the index of the source files."""
    paths = [path.absolute() for sample in dataset.samples for path in (sample.image, sample.label)]
    folder = root / f"{dataset.name}-{dataset.split}-{_digest(map(str, paths))}"
    try:
        known = dict(json.loads((folder / "index.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        known = {}  # every file is read again
    with ThreadPoolExecutor() as pool:  # hashing and reading release the global interpreter lock
        entries = list(pool.map(lambda path: _entry(path, known.get(str(path))), paths))
    index = dict(zip(map(str, paths), entries, strict=True))
    if index != known:
        with contextlib.suppress(OSError):  # without an index, the next start reads every file again
            write_atomic(folder / "index.json", json.dumps(index))
    digests = [entry["sha256"] for entry in entries]
    pairs = zip(digests[::2], digests[1::2], strict=True)
    return [folder / f"{_digest([FORMAT, *pair])}.bin" for pair in pairs]


def _entry(path: Path, known: dict | None) -> dict:
    """Size, times, and SHA-256 of a file; the ``known`` entry where size and times are the same."""
    try:
        stat = path.stat()
        now = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "ctime_ns": stat.st_ctime_ns}
        settled = known and max(stat.st_mtime_ns, stat.st_ctime_ns) + _CLOCK_TICK_NS < known["read_ns"]
        if settled and now.items() <= known.items():
            return known
        read_ns = time.time_ns()
        return {**now, "read_ns": read_ns, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror or error}") from None


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
