"""sha256 digests of a dataset's files, re-read only where a file's stat changed."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from s2fpn_lib.data.dataset import DatasetError

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
