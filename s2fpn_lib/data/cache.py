"""Decode once: a memory-mapped uint8 cache with one file per sample, named by the content of its sources.

The cache folder holds one folder per dataset and split::

    <protocol>-train-<paths>/index.json      size, times, and SHA-256 of every source file
    <protocol>-train-<paths>/<content>.bin   header and label counts (int64), image (H, W, 3), label (H, W)

Files are written atomically, so processes may build the same cache at once, and an interrupted build continues. A
changed source file leads to another ``<content>``; files out of use are removed.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import time
import warnings
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from s2fpn_lib.data.dataset import DatasetError, SegmentationDataset, Subset
from s2fpn_lib.data.files import FileDataset
from s2fpn_lib.runs import atomic_file, write_atomic

FORMAT = "2"  # to be raised whenever decoding changes
_HEADER = 4 + 256  # int64: checksum of the rest of the header, checksum of the pixels, height, width, label counts
# A file that changes twice within one tick of the file system's clock keeps its times. As in Git's index, an entry is
# trusted only if the file was already this old when it was read.
_CLOCK_TICK_NS = 2_000_000_000


class CacheSpaceError(OSError):
    """The disk has no room for the cache."""


def cache_root() -> Path:
    """The folder of all caches: the environment variable S2FPN_CACHE, else ``~/.cache/s2fpn``."""
    return Path(os.environ.get("S2FPN_CACHE") or Path.home() / ".cache" / "s2fpn").expanduser()


def cached(dataset: SegmentationDataset, root: Path | None = None) -> SegmentationDataset:
    """``dataset`` read through the cache in ``root`` (default :func:`cache_root`), which is created when missing.

    ``dataset`` is a :class:`FileDataset`, or its ``cache_key()`` identifies its content. It is returned itself, with a
    warning, where the folder is not writable or a file cannot be decoded. Raises CacheSpaceError if the disk is full.
    """
    root = root or cache_root()
    prefix = f"{dataset.protocol.name}-{dataset.split}"  # the protocol decides how labels are decoded
    try:
        if isinstance(dataset, FileDataset):
            sources = [[path.absolute() for path in (*sample, *dataset.sources)] for sample in dataset.samples]
            paths = list(dict.fromkeys(path for each in sources for path in each))
            folder = root / f"{prefix}-{_digest(map(str, paths))}"
            sha256 = _file_digests(paths, folder / "index.json")
            digests = [{path: sha256[path] for path in each} for each in sources]
            names = [_digest([FORMAT, *each.values()]) for each in digests]
        else:
            folder = root / f"{prefix}-{_digest([FORMAT, dataset.cache_key()])}"
            digests, names = [{}] * len(dataset), dataset.names
        files = [folder / f"{name}.bin" for name in names]
        _write_missing(dataset, files)
        return CachedDataset(dataset, files, digests)
    except CacheSpaceError:
        raise
    except DatasetError as error:
        reason = f"the data has errors, see s2fpn_lib.data.check_dataset ({error})"
    except OSError as error:
        reason = f"{root} cannot be used ({error.strerror or error}); set S2FPN_CACHE to a writable folder"
    warnings.warn(f"No cache for {dataset.name} {dataset.split}: {reason}. Decoding on every access.", stacklevel=3)
    return dataset


class CachedDataset(Subset):
    """All samples of ``source``, read from one cache file per sample, whose checksum is verified on the first read.

    A missing or damaged file is written again; DatasetError if a source file no longer has the SHA-256 in ``digests``.
    """

    def __init__(self, source: SegmentationDataset, files: list[Path], digests: list[dict[Path, str]]) -> None:
        super().__init__([(source, index) for index in range(len(source))], source.split, like=source)
        self.files, self.digests = files, digests
        self._verified = np.zeros(len(files), dtype=bool)

    def arrays(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        (height, width), _, _, pixels = self._sample(index)
        area = height * width
        return pixels[: area * 3].reshape(height, width, 3), pixels[area * 3 :].reshape(height, width)

    def label_summary(self, index: int) -> tuple[tuple[int, int], np.ndarray]:
        return self._sample(index, verify=False)[:2]

    def fingerprint(self, index: int) -> tuple[int, int, int]:
        if not self.digests[index]:  # no files: the source knows its content
            return super().fingerprint(index)
        size, _, checksum, _ = self._sample(index, verify=False)
        return *size, checksum

    def _sample(self, index: int, verify: bool = True) -> tuple[tuple[int, int], np.ndarray, int, np.ndarray]:
        """Size, label counts (256,), checksum of the pixels, and flat pixels; ``verify=False`` checks only the header
        and the file's size."""
        verify = verify and not self._verified[index]
        try:
            sample = _read(self.files[index], verify)
        except (OSError, ValueError) as error:
            for path, digest in self.digests[index].items():
                if not path.is_file() or _entry(path)["sha256"] != digest:
                    advice = "restore the file, or start again with the changed data"
                    raise DatasetError(f"{path}: the data changed while in use; {advice}") from None
            warnings.warn(f"{self.files[index]}: the cache is damaged ({error}); building it again.", stacklevel=4)
            _write(*self.items[index], self.files[index])
            sample = _read(self.files[index], verify)
        self._verified[index] |= verify
        return sample


def _read(file: Path, verify: bool) -> tuple[tuple[int, int], np.ndarray, int, np.ndarray]:
    # a plain array over the mapping, as slicing a memmap is slower; copy-on-write, as torch wants writable arrays
    content = np.memmap(file, dtype=np.uint8, mode="c").view(np.ndarray)
    header, pixels = content[: _HEADER * 8], content[_HEADER * 8 :]
    if len(header) < _HEADER * 8 or zlib.crc32(header[8:]) != header[:8].view(np.int64):
        raise ValueError("the header does not match its checksum")
    values = header.view(np.int64)
    checksum, height, width = values[1:4].tolist()
    if pixels.size != height * width * 4 or (verify and zlib.crc32(pixels) != checksum):
        raise ValueError("the pixels do not match their checksum")
    return (height, width), values[4:], checksum, pixels


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
        no_room = CacheSpaceError(
            errno.ENOSPC,
            f"the cache of {dataset.name} {dataset.split} needs {needed / 1e9:.2f} GB, but {folder} has "
            f"{free / 1e9:.2f} GB free. Make room, set S2FPN_CACHE to a folder on a larger disk, or open the "
            "dataset with cache=False",
        )
        if needed > free:
            raise no_room
        try:
            with ThreadPoolExecutor() as pool:  # decoding releases the global interpreter lock
                list(pool.map(lambda file: _write(dataset, missing[file], file), missing))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            for file in missing:
                file.unlink(missing_ok=True)
            raise no_room from error
    for file in set(folder.glob("*.bin")) - set(files):
        file.unlink(missing_ok=True)


def _file_digests(paths: list[Path], index_file: Path) -> dict[Path, str]:
    """The SHA-256 of each file; a file whose size and times are in ``index_file`` is not read."""
    try:
        known = dict(json.loads(index_file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        known = {}  # every file is read again
    with ThreadPoolExecutor() as pool:  # hashing and reading release the global interpreter lock
        entries = list(pool.map(lambda path: _entry(path, known.get(str(path))), paths))
    index = dict(zip(map(str, paths), entries, strict=True))
    if index != known:
        with contextlib.suppress(OSError):  # without an index, the next start reads every file again
            write_atomic(index_file, json.dumps(index))
    return {path: entry["sha256"] for path, entry in zip(paths, entries, strict=True)}


def _entry(path: Path, known: dict | None = None) -> dict:
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
