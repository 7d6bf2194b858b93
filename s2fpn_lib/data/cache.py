"""Decode once: a uint8 cache with one file per sample, named by the content of its sources.

The cache folder holds one folder per dataset and split::

    <protocol>-train-<paths>/index.json      size, times, and SHA-256 of every source file
    <protocol>-train-<paths>/<content>.bin   header and label counts (int64), image (H, W, 3), label (H, W)

Processes may build one cache at once. Files are read, not mapped: a mapped file that is cut short kills its reader.
"""

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import time
import warnings
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from stat import S_ISREG

import numpy as np

from s2fpn_lib.data.dataset import DatasetError, SegmentationDataset, Subset, fingerprint
from s2fpn_lib.data.files import FileDataset
from s2fpn_lib.runs import remove_leftovers, write_atomic

FORMAT = "3"  # to be raised whenever decoding changes
# int64: checksum of the file's name and the rest of the header, checksum of the pixels, height, width, label counts
_HEADER = 4 + 256
# A file that changes twice within one tick of the file system's clock keeps its times. As in Git's index, an entry is
# trusted only if the file was already this old when it was read.
_CLOCK_TICK_NS = 2_000_000_000

_CHANGED = "the data changed while in use; restore the file, or start again with the changed data"
_Sample = tuple[tuple[int, int], np.ndarray, int, np.ndarray]  # size, label counts (256,), checksum, and flat pixels


class CacheSpaceError(OSError):
    """The disk has no room for the cache."""


def cached(dataset: SegmentationDataset, root: Path | None = None) -> SegmentationDataset:
    """``dataset``, a :class:`FileDataset` or one whose ``cache_key()`` identifies its content, read through the cache
    in ``root``: by default the environment variable S2FPN_CACHE, else ``~/.cache/s2fpn``. Where the folder is not
    writable or a file cannot be decoded, it is a :class:`DecodedDataset`, with a warning. Raises CacheSpaceError if the
    disk is full."""
    root = root or Path(os.environ.get("S2FPN_CACHE") or Path.home() / ".cache" / "s2fpn").expanduser()
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
        _write_missing(dataset, files, digests)
        return CachedDataset(dataset, files, digests)
    except CacheSpaceError:
        raise
    except DatasetError as error:
        reason = f"the data has errors, see s2fpn_lib.data.check_dataset ({error})"
    except OSError as error:
        cause = os.strerror(error.errno) if error.errno else error
        reason = f"{root} cannot be used ({cause}); set S2FPN_CACHE to a writable folder"
    warnings.warn(f"No cache for {dataset.name} {dataset.split}: {reason}. Decoding on every access.", stacklevel=3)
    return DecodedDataset(dataset)


class DecodedDataset(Subset):
    """All samples of ``source``, decoded on each access; DatasetError if the pixels are not those of the first one."""

    def __init__(self, source: SegmentationDataset) -> None:
        super().__init__([(source, index) for index in range(len(source))], source.split, like=source)
        self._first: dict[int, tuple[int, int, int]] = {}

    def arrays(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        image, label = super().arrays(index)
        found = fingerprint(image, label)
        if self._first.setdefault(index, found) != found:
            raise DatasetError(f"{self.label_source(index)} or its image: {_CHANGED}")
        return image, label

    label_summary, fingerprint = SegmentationDataset.label_summary, SegmentationDataset.fingerprint


class CachedDataset(Subset):
    """All samples of ``source``, read from one cache file each, whose checksum is verified at first and after a change.
    A missing or damaged file is written again; DatasetError if a source no longer has the SHA-256 in ``digests``."""

    def __init__(self, source: SegmentationDataset, files: list[Path], digests: list[dict[Path, str]]) -> None:
        super().__init__([(source, index) for index in range(len(source))], source.split, like=source)
        self.files, self.digests = files, digests
        self._verified: list[tuple[int, ...]] = [()] * len(files)  # what `_state` gave for the file then

    def arrays(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        (height, width), _, _, pixels = self._sample(index)
        area = height * width
        return pixels[: area * 3].reshape(height, width, 3), pixels[area * 3 :].reshape(height, width)

    def label_summary(self, index: int) -> tuple[tuple[int, int], np.ndarray]:
        return self._sample(index, whole=False)[:2]

    def fingerprint(self, index: int) -> tuple[int, int, int]:
        if not self.digests[index]:  # no files: the source knows its content
            return super().fingerprint(index)
        size, _, checksum, _ = self._sample(index, whole=False)
        return *size, checksum

    def _sample(self, index: int, whole: bool = True) -> _Sample:
        """A sample, or with ``whole=False`` what its header says, without pixels."""
        file = self.files[index]
        try:
            with file.open("rb", buffering=0) as opened:
                before = _state(opened)
                content = np.fromfile(opened, np.uint8, -1 if whole else _HEADER * 8)
                verified = _state(opened) == self._verified[index]  # no write before the last byte was read
            sample = _parsed(content, file, before[0], verify=whole and not verified)
        except (OSError, ValueError) as error:
            _require_unchanged(self.digests[index])
            warnings.warn(f"{file}: the cache is damaged ({error}); building it again.", stacklevel=4)
            content = _encoded(*self.items[index], file, self.digests[index])
            try:
                write_atomic(file, content.tobytes())
            except OSError as failure:
                warnings.warn(f"{failure.strerror}. Until then, the sample is decoded.", stacklevel=4)
            return _parsed(content, file, content.size, verify=False)
        if whole:
            self._verified[index] = before
        return sample


def _state(opened: io.FileIO) -> tuple[int, ...]:
    """The size of an open file, and what also changes when it is replaced or written to."""
    stat = os.fstat(opened.fileno())
    return stat.st_size, stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns


def _parsed(content: np.ndarray, file: Path, size: int, *, verify: bool) -> _Sample:
    """A sample of a cache file of ``size`` bytes; without a check of the pixels, ``content`` may be its header alone.
    Raises ValueError if it is damaged, or the content of another file."""
    header, pixels = content[: _HEADER * 8], content[_HEADER * 8 :]
    if len(header) < _HEADER * 8 or _header_checksum(header, file) != header[:8].view(np.int64):
        raise ValueError("the header does not match its checksum")
    values = header.view(np.int64)
    checksum, height, width = values[1:4].tolist()
    if size != _HEADER * 8 + height * width * 4 or (verify and zlib.crc32(pixels) != checksum):
        raise ValueError("the pixels do not match their checksum")
    return (height, width), values[4:], checksum, pixels


def _header_checksum(header: np.ndarray, file: Path) -> int:
    return zlib.crc32(header[8:], zlib.crc32(f"{file.parent.name}/{file.name}".encode()))


def _encoded(dataset: SegmentationDataset, index: int, file: Path, digests: dict[Path, str]) -> np.ndarray:
    """The content of a sample's cache file, uint8; DatasetError if a source changed before it was decoded."""
    image, label = dataset.arrays(index)
    _require_unchanged(digests)
    pixels = np.concatenate([image.reshape(-1), label.reshape(-1)])  # (H, W, 3), (H, W) -> flat
    counts = np.bincount(label.reshape(-1), minlength=256)
    header = np.array([0, zlib.crc32(pixels), *label.shape, *counts], dtype=np.int64)
    header[0] = _header_checksum(header.view(np.uint8), file)
    return np.concatenate([header.view(np.uint8), pixels])


def _require_unchanged(digests: dict[Path, str]) -> None:
    for path, digest in digests.items():
        if not path.is_file() or _entry(path)["sha256"] != digest:
            raise DatasetError(f"{path}: {_CHANGED}")


def _write_missing(dataset: SegmentationDataset, files: list[Path], digests: list[dict[Path, str]]) -> None:
    """Decode and write the samples that have no file yet, and remove files that belong to no sample."""
    folder = files[0].parent
    remove_leftovers(folder)
    missing = {file: index for index, file in enumerate(files) if not file.exists()}

    def build(file: Path) -> None:
        write_atomic(file, _encoded(dataset, missing[file], file, digests[missing[file]]).tobytes())

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
                list(pool.map(build, missing))
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
        stored = json.loads(index_file.read_text(encoding="utf-8"))
        known = stored["files"] if stored["checksum"] == _digest([json.dumps(stored["files"])]) else {}
    except (OSError, ValueError, TypeError, KeyError):
        known = {}  # every file is read again
    with ThreadPoolExecutor() as pool:  # hashing and reading release the global interpreter lock
        entries = list(pool.map(lambda path: _entry(path, known.get(str(path))), paths))
    index = dict(zip(map(str, paths), entries, strict=True))
    if index != known:
        with contextlib.suppress(OSError):  # without an index, the next start reads every file again
            write_atomic(index_file, json.dumps({"checksum": _digest([json.dumps(index)]), "files": index}))
    return {path: entry["sha256"] for path, entry in zip(paths, entries, strict=True)}


def _entry(path: Path, known: dict | None = None) -> dict:
    """Size, times, and SHA-256 of a file; the ``known`` entry where size and times are the same."""
    try:
        stat = path.stat()
        if not S_ISREG(stat.st_mode):  # reading a named pipe would wait, and a device has no end
            raise OSError("is not a regular file")
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
