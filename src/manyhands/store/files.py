"""Files that are either whole or absent: written aside, flushed to the disk, renamed.

One place maps the operating system's words to `StorageError`. Knows nothing of checkpoints or journals.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from manyhands.errors import StorageError

_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up"}
_HELP = {
    errno.ENOSPC: "free some space or choose another folder",
    errno.EDQUOT: "free some space or choose another folder",
    errno.EFBIG: "raise the file size limit (ulimit -f) or choose another folder",
    errno.EACCES: "give this user write access or choose another folder",
    errno.EPERM: "give this user write access or choose another folder",
    errno.EROFS: "the file system is read-only: choose another folder",
}
# safetensors reports a failed write as text only; the number in it is the operating system's.
_OS_ERROR = re.compile(r"os error (\d+)")


def free_bytes(path: Path) -> int | None:
    """Bytes an ordinary user may still write at `path` (its nearest folder that exists), None if unknown."""
    for folder in (path, *path.parents):
        try:
            return shutil.disk_usage(folder).free
        except FileNotFoundError:
            continue
        except OSError:
            return None
    return None


def storage_error(path: Path, doing: str, error: Exception, needed_bytes: int | None = None) -> StorageError:
    """The one sentence that a failed file deserves: what, where, how much was needed and free, what to do."""
    code = error.errno if isinstance(error, OSError) else _errno_in(str(error))
    why = _FULL.get(code or 0) or (os.strerror(code) if code else str(error))
    room = ""
    if needed_bytes is not None:
        free = free_bytes(path)
        room = f" ({needed_bytes:,} bytes needed, {'unknown' if free is None else f'{free:,}'} free)"
    advice = _HELP.get(code or 0, "check the disk")
    return StorageError(f"could not {doing} {path}: {why}{room}; {advice}", str(path))


def _errno_in(text: str) -> int | None:
    found = _OS_ERROR.search(text)
    return int(found.group(1)) if found else None


@contextmanager
def storage(path: Path, doing: str, needed_bytes: int | None = None) -> Iterator[None]:
    """Turn the operating system's errors inside the block into `StorageError`."""
    try:
        yield
    except OSError as error:
        raise storage_error(path, doing, error, needed_bytes) from error


def sync(path: Path) -> None:
    """Flush a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write `text` as a new file and flush it; raises `OSError`."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def replace_text(path: Path, text: str) -> None:
    """Put `text` at `path` in one step: a reader sees the old file or the new one; raises `OSError`."""
    aside = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    write_text(aside, text)
    aside.replace(path)
    sync(path.parent)


def sha256(path: Path) -> str:
    """The hexadecimal SHA-256 of a file's bytes; raises `OSError`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
