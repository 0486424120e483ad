"""A node's own key: who it is, whatever invite it joined with and wherever it stands.

The key is made before the first dial, lies in a file of mode 0600 and never leaves the machine. Two
processes must not share one key, since the coordinator keeps one stream a key and the newest wins; so
`claim` hands out the first key of a folder that no living process holds.
"""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from manyhands.errors import StorageError, UsageError
from manyhands.wire import certificates
from manyhands.wire.private import create_private, private_folder

_MOST_KEYS = 256


@dataclass(frozen=True, slots=True)
class NodeKey:
    """A P-256 key with its id (32 hexadecimal characters); `repr()` shows the id only."""

    key_id: str
    private: ec.EllipticCurvePrivateKey = field(repr=False)
    _lock: int | None = field(default=None, repr=False, compare=False)

    @classmethod
    def load(cls, path: Path, lock: int | None = None) -> NodeKey:
        """The key at `path`, made now where there is none (folder 0700, file 0600).

        Raises `UsageError` for a file that is no key or that others may read, `StorageError` where it
        cannot be written.
        """
        pem = create_private(path, lambda: certificates.key_to_pem(certificates.new_key()))
        try:
            private = certificates.key_from_pem(pem)
        except ValueError:
            raise UsageError(f"{path} is not a node key: move it away to get a new one") from None
        return cls(certificates.key_id(private.public_key()), private, lock)

    @classmethod
    def claim(cls, folder: Path) -> NodeKey:
        """The first key of `folder` that no other process or node holds; held until `release` or exit.

        A machine that runs three nodes has three keys, and the same three the next time.
        """
        private_folder(folder)
        for number in range(_MOST_KEYS):
            lock = _try_lock(folder / f"node-{number}.lock")
            if lock is not None:
                return cls.load(folder / f"node-{number}.key", lock)
        raise UsageError(f"{_MOST_KEYS} nodes of this user hold their keys in {folder}: stop some of them")

    @classmethod
    def temporary(cls) -> NodeKey:
        """A key that lives in memory only, for one connection of a command such as `status`."""
        private = certificates.new_key()
        return cls(certificates.key_id(private.public_key()), private)

    def release(self) -> None:
        """Let another process have a claimed key; needed once, and only for a claimed one."""
        if self._lock is not None:
            os.close(self._lock)


def _try_lock(path: Path) -> int | None:
    """A descriptor that holds the lock, or None where somebody else does; the kernel frees it on a crash."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}", str(path)) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
