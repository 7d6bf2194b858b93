"""Files that are written completely or not at all, and the errors where they cannot be written."""

import errno
import io
import json
import os
import secrets
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

_NO_ROOM = dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room on that disk and run again")
_NO_ENTRY = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST)
_OTHER_FOLDER = "make the folder writable or give another one; S2FPN_RESULTS names the folder of all results"
CLOCK_TOLERANCE = 60 * 10**9  # ns by which the clock of a file server may be ahead
LOCKED_BYTE = 2**30  # msvcrt locks bytes, and nobody else may read them: one behind the end of every file here


class WriteError(OSError):
    """A file or folder cannot be written; the message names it, the reason, and what to do."""

    def __str__(self) -> str:
        return self.strerror


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors in writing `path` as WriteErrors; also those that torch or PyAV raise after a failed write."""
    try:
        yield
    except WriteError:
        raise
    except Exception as error:
        cause = error if isinstance(error, OSError) and error.errno in errno.errorcode else error.__context__
        if not isinstance(cause, OSError) or not _concerns(path, cause):
            raise
        advice = _OTHER_FOLDER if cause.errno in _NO_ENTRY else _NO_ROOM.get(cause.errno, "run again")
        reason = f"could not write {path} ({cause.strerror}). Earlier files are intact: {advice}"
        raise WriteError(cause.errno, reason) from error


def require_writable(folder: str | Path) -> None:
    """Raises WriteError unless files can be written to a folder or, where it does not exist, to the one that will hold
    it; creates nothing."""
    folder = Path(folder).expanduser()
    with naming(folder):
        tempfile.TemporaryFile(dir=next(filter(Path.exists, (folder, *folder.absolute().parents)))).close()


def _concerns(path: Path, error: OSError) -> bool:
    """Whether an error is about writing `path`, and not about a file that is read meanwhile."""
    if not error.filename:  # in a write to an open file
        return error.errno in (*_NO_ROOM, errno.EIO, errno.EROFS)
    named = Path(error.filename)
    temporary = named.name.startswith((f".{path.name}.", tempfile.gettempprefix()))
    return error.errno in errno.errorcode and (temporary or named in (path, *path.parents))


def remove_leftovers(folder: Path) -> None:
    """Removes what killed processes left of the temporary files of `atomic_file`, in subfolders, too."""
    for leftover in folder.rglob(".*.tmp"):
        with suppress(OSError), ExitStack() as opened:  # in use, removed meanwhile, or on a disk without locks
            if fcntl is not None:
                file = opened.enter_context(leftover.open("r+b"))
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            leftover.unlink()


@contextmanager
def atomic_file(path: str | Path, *, previous: str = "") -> Iterator[io.BufferedRandom]:
    """A binary file that replaces `path` completely or, on any error (disk full, interrupt), not at all.

    It is written under a temporary name in the same folder, synced to the disk, and renamed. previous: name under which
    the replaced file is kept; empty: it is not kept. Raises WriteError.
    """
    path = Path(path)
    with naming(path), ExitStack() as stack:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary, file = _temporary(path)
        stack.callback(temporary.unlink, missing_ok=True)
        if fcntl is not None:
            stack.callback(os.close, os.dup(file.fileno()))  # keeps the lock until the file has its name
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if previous and path.exists():
            path.replace(path.with_name(previous))
        temporary.replace(path)
        if fcntl is not None:  # Windows opens no folders
            folder = os.open(path.parent, os.O_RDONLY)
            stack.callback(os.close, folder)
            os.fsync(folder)  # makes the rename durable


def _temporary(path: Path) -> tuple[Path, io.BufferedRandom]:
    """A new temporary file beside `path`, locked until it is closed, so that `remove_leftovers` leaves it alone."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        file = temporary.open("x+b")
        with suppress(OSError):  # a disk without locks
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)
        if temporary.exists():  # else `remove_leftovers` came between
            return temporary, file
        file.close()


def write_atomic(path: str | Path, data: bytes | str) -> None:
    """Replaces `path` by `data` (text as UTF-8), completely or not at all."""
    with atomic_file(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def write_json(path: str | Path, value: Any) -> None:
    """Replaces `path` by indented JSON, completely or not at all."""
    write_atomic(path, json.dumps(value, indent=2) + "\n")


def read_json(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file. Raises a ValueError that names the file if it is damaged, or holds something else."""
    try:
        value = json.loads(_read(path))
        if not isinstance(value, dict):
            raise ValueError("it holds no JSON object")
        return value
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): restore it, or delete its folder to start again") from error


def _read(path: str | Path) -> bytes:
    """The content of a file; ValueError for a named pipe, on which reading would wait for a writer, and the like."""
    if Path(path).exists() and not Path(path).is_file():
        raise ValueError("it is not a regular file")
    return Path(path).read_bytes()


def written_order(path: Path) -> tuple[bool, int]:
    """A key that sorts files by the time of their last change, the latest last. A time in the future is not trusted:
    the clock has been set back since, so such a file comes before all others."""
    changed = path.stat().st_mtime_ns
    return changed <= time.time_ns() + CLOCK_TOLERANCE, changed


def append_row(path: str | Path, row: Mapping[str, Any]) -> None:
    """Appends one row to a JSON Lines file that processes may share; an unfinished last line is removed first."""
    path = Path(path)
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file, locked(file, wait=True):
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
            file.write(json.dumps(row).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def locked(file: io.IOBase, *, wait: bool) -> Iterator[None]:
    """Locks an open file against other processes; where one holds it, waits or raises OSError.

    The operating system removes the lock when this process dies. With fcntl it lasts until the file is closed: with
    `wait` a lock of the open file (threads exclude each other, too), else one of the process, which no fork inherits.
    """
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX) if wait else fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
        return
    os.lseek(file.fileno(), LOCKED_BYTE, os.SEEK_SET)
    msvcrt.locking(file.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
    try:
        yield
    finally:
        file.flush()
        os.lseek(file.fileno(), LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a JSON Lines file, oldest first, without an unfinished last line; ValueError for a damaged one."""
    if not Path(path).exists():
        return []
    rows, number = [], 0
    try:
        for number, line in enumerate(_read(path).rpartition(b"\n")[0].splitlines(), start=1):  # noqa: B007, used below
            rows.append(json.loads(line))
            if not isinstance(rows[-1], dict):
                raise ValueError("no object")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} line {number} is not JSON ({error}); repair or delete that line") from error
    return rows
