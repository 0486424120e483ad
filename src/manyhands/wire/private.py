"""Files that only their owner may read: node keys, coordinator keys, the invites of local listeners.

It knows modes, owners and atomic creation; it must not know what the files mean. Two processes may ask
for the same new file at once: one creates it, both read the same bytes.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path

from manyhands.errors import StorageError, UsageError

_MOST_BYTES = 64 * 1024


def private_folder(folder: Path) -> Path:
    """`folder`, made with mode 0700 where it does not exist yet.

    Raises `StorageError` where it cannot be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make the folder {folder}: {error.strerror}", str(folder)) from error
    return folder


def read_private(path: Path) -> bytes:
    """The bytes of a file that nobody but its owner may read.

    Raises `UsageError` where others may read it, `StorageError` where it cannot be read; a missing file
    is a plain `FileNotFoundError`.
    """
    try:
        with path.open("rb") as file:
            _check_mode(path, os.fstat(file.fileno()).st_mode)
            return file.read(_MOST_BYTES)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}", str(path)) from error


def write_private(path: Path, data: bytes) -> None:
    """Put `data` at `path` with mode 0600, whole or not at all; an older file is replaced."""
    aside = _write_aside(path, data)
    aside.replace(path)


def create_private(path: Path, make: Callable[[], bytes]) -> bytes:
    """The bytes at `path`; made with `make` and written with mode 0600 where there is no file yet.

    The first of several processes wins, and all of them return its bytes.
    """
    with contextlib.suppress(FileNotFoundError):
        return read_private(path)
    private_folder(path.parent)
    aside = _write_aside(path, make())
    try:
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(aside)
    finally:
        aside.unlink()
    return read_private(path)


def _write_aside(path: Path, data: bytes) -> Path:
    """A synced neighbour of `path` that holds `data`, under a name that nobody can have laid a link at."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise StorageError(f"cannot write {path}: {error.strerror}", str(path)) from error
    return aside


def _check_mode(path: Path, mode: int) -> None:
    if stat.S_IMODE(mode) & 0o077:
        raise UsageError(
            f"{path} holds a secret and others may read it (mode {stat.S_IMODE(mode):04o}): "
            f"run `chmod 600 {path}`, or remove the file to get a new one"
        )
