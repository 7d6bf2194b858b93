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

import hashlib
import json
import logging
import os
import shutil
import uuid
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from s2fpn_lib.data.cache_folder import FORMAT, CacheSpaceError, Folder, build
from s2fpn_lib.data.dataset import DatasetError, FileDataset, SegmentationDataset
from s2fpn_lib.data.fingerprint import digest_files, load_index

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
