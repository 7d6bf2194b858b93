"""Decode once: a memory-mapped uint8 cache of a dataset, keyed by the content of its files.

Layout of the cache folder (``S2FPN_CACHE``, else ``~/.cache/s2fpn``)::

    camvid-train-<content>/manifest.json    shapes, offsets, checksums and label values of every sample
    camvid-train-<content>/pixels.bin       per sample the image (H, W, 3), then the label (H, W), both uint8
    camvid-train-<place>.files.json         size, times and sha256 of every source file

``<content>`` is a digest over the files' digests, so a content folder never changes: it is built aside and renamed into
place, and two processes that build the same one at once leave one of two equal results. A file that changes leads to
another content folder, which takes over the samples that stayed the same; the old folder is then removed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import time
import uuid
import warnings
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from s2fpn_lib.data.dataset import DatasetError, FileDataset, SegmentationDataset, read_arrays

# MERGED data.cache_folder: """One content folder of the cache on disk: its format, how it is written whole or not at all, how it is read back."""
# MERGED data.fingerprint: """sha256 digests of a dataset's files, re-read only where a file's stat changed."""


_log = logging.getLogger(__name__)


def cache_root() -> Path:
    """The folder of all caches: the environment variable S2FPN_CACHE, else ``~/.cache/s2fpn``."""
    return Path(os.environ.get("S2FPN_CACHE") or Path.home() / ".cache" / "s2fpn").expanduser()


def cached(dataset: SegmentationDataset, root: Path | None = None) -> SegmentationDataset:
    """``dataset`` read through the cache in ``root`` (default :func:`cache_root`), which is made where it is missing.

    Falls back to ``dataset`` itself, with a warning, where the folder cannot be written or a file cannot be decoded.

    Raises:
        CacheSpaceError: there is no room on the disk.
    """
    root = root or cache_root()
    try:
        return _open_or_build(dataset, root)
    except CacheSpaceError:
        raise
    except DatasetError as error:
        reason = f"the data has errors, see s2fpn_lib.data.check_dataset ({error})"
    except OSError as error:
        reason = f"{root} cannot be used ({error.strerror or error}); set S2FPN_CACHE to a writable folder"
    warnings.warn(f"No cache for {dataset.name} {dataset.split}: {reason}. Decoding on every access.", stacklevel=3)
    return dataset


class CachedDataset(SegmentationDataset):
    """The same samples as ``source``, from one content folder. Safe to pickle into worker processes.

    Each sample's checksum is verified when this process first reads it; a damaged cache is rebuilt from ``source``.
    """

    def __init__(self, source: SegmentationDataset, folder: Path, sample_keys: list[str]) -> None:
        self.source, self.folder, self.sample_keys = source, folder, sample_keys
        self.name, self.protocol, self.split = source.name, source.protocol, source.split
        self.names, self.drives = source.names, source.drives
        self.problems = source.problems
        self.contents = Folder(folder)

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key != "contents"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self.contents = Folder(self.folder)

    def arrays(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        found = self.contents.arrays(index)
        if found is None:
            warnings.warn(f"{self.folder}: the cache is damaged; building it again.", stacklevel=3)
            shutil.rmtree(self.folder, ignore_errors=True)
            self.contents = build(self.source, self.folder, self.sample_keys)
            return self.arrays(index)
        return found

    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of every sample."""
        return [tuple(row["size"]) for row in self.contents.rows]

    def label_counts(self) -> np.ndarray:
        """Pixels of every label value in every sample, (len, 256) int64, as counted when the cache was built."""
        counts = np.zeros((len(self), 256), dtype=np.int64)
        for index, row in enumerate(self.contents.rows):
            counts[index, row["values"]] = row["counts"]
        return counts


def _open_or_build(dataset: SegmentationDataset, root: Path) -> SegmentationDataset:
    if isinstance(dataset, FileDataset):
        paths = [path for sample in dataset.samples for path in (sample.image, sample.label)]
        place = root / f"{dataset.name}-{dataset.split}-{_digest(str(path.absolute()) for path in paths)}.files.json"
        index = load_index(place)
        files = digest_files((path.absolute() for path in paths), index["files"])
        pairs = zip(paths[::2], paths[1::2], strict=True)
        sample_keys = [":".join(files[str(path.absolute())]["sha256"] for path in pair) for pair in pairs]
        recipe = dataset.decoder
    elif hasattr(dataset, "cache_key"):
        place, index, recipe = None, {"content": ""}, str(dataset.cache_key())
        sample_keys = dataset.names
    else:
        return dataset
    content = _digest([str(FORMAT), recipe, *dataset.names, *sample_keys])
    folder = root / f"{dataset.name}-{dataset.split}-{content}"
    before = root / index["content"] if index["content"] not in ("", folder.name) else None
    present = folder.is_dir()  # renamed into place whole: what is incomplete was damaged later
    try:
        Folder(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if present:
            warnings.warn(f"{folder}: the cache is damaged ({error}); building it again.", stacklevel=4)
            shutil.rmtree(folder, ignore_errors=True)
        build(dataset, folder, sample_keys, earlier=_open_quietly(before))
    if place and (index["content"] != folder.name or files != index["files"]):
        _save_index(place, {"content": folder.name, "files": files})
        if before:
            shutil.rmtree(before, ignore_errors=True)
    return CachedDataset(dataset, folder, sample_keys)


def _open_quietly(path: Path | None) -> Folder | None:
    try:
        return Folder(path) if path else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _save_index(place: Path, index: dict) -> None:
    """Best effort: without it the next start reads every file again, and is still right."""
    aside = place.with_name(f"{place.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        aside.write_text(json.dumps(index))
        aside.replace(place)
    except OSError as error:
        aside.unlink(missing_ok=True)
        _log.info("%s was not saved: %s", place, error)


def _digest(parts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:16]


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


# A file changed twice within one tick of the file system's clock keeps its stat. As git does for its index, an entry is
# trusted only once the file was already this old when it was read.
_CLOCK_TICK_NS = 2_000_000_000


def load_index(path: Path) -> dict:
    """The stored ``{"content": folder that it led to, "files": {...}}``; an empty one if it is unreadable."""
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(index["files"], dict) and isinstance(index["content"], str):
            return index
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return {"content": "", "files": {}}


def digest_files(paths: Iterable[Path], known: dict) -> dict[str, dict]:
    """``{path: {"size", "mtime_ns", "ctime_ns", "read_ns", "sha256"}}`` for every path.

    Args:
        known: an earlier result; its digest is taken over where size and times are unchanged.

    Raises:
        DatasetError: names every file that is missing or cannot be read.
    """
    unique = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(max_workers=4) as pool:  # hashing and reading release the GIL
        found = list(pool.map(lambda path: _entry(path, known.get(str(path))), unique))
    problems = [entry for entry in found if isinstance(entry, str)]
    if problems:
        raise DatasetError(f"{len(problems)} files cannot be read:", problems)
    return {str(path): entry for path, entry in zip(unique, found, strict=True)}


def _entry(path: Path, known: dict | None) -> dict | str:
    try:
        stat = path.stat()
        now = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "ctime_ns": stat.st_ctime_ns}
        if known and all(known.get(key) == value for key, value in now.items()) and _settled(known):
            return known
        read_ns = time.time_ns()
        return {**now, "read_ns": read_ns, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    except FileNotFoundError:
        return f"{path}: file is missing"
    except OSError as error:
        return f"{path}: {error.strerror or error}"


def _settled(entry: dict) -> bool:
    return max(entry["mtime_ns"], entry["ctime_ns"]) + _CLOCK_TICK_NS < entry["read_ns"]
