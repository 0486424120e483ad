"""Large messages between two processes of one user on one machine: through shared memory, past the encryption.

::

    sender   message ── copy ──▶ its ring                     ring ── copy ──▶ message   reader
                 └── a note: where it lies ──▶ the stream ──────────┘
             room  ◀── counter of what was copied out ──────────────┘

The side that dials makes the memory and says where it is; the side that listens opens it, which nobody but this user on
this machine can, and finds there the secret that it was told: so both know that they are neighbours. Order is the
stream's. A message that is small, or finds no room, travels on the stream itself: nobody waits for room.

Linux has what this needs (memory with a descriptor and without a name, memfd_create(2), whose size is sealed);
elsewhere there is no offer. Knows no stream, and no meaning of a message.
"""

from __future__ import annotations

import contextlib
import hmac
import mmap
import os
import re
import secrets
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from manyhands.errors import ProtocolError
from manyhands.wire.ring import Ring

LEAST_BYTES: Final = 16 << 10
"""Below that a note costs as much as the message."""
RING_BYTES: Final = 32 << 20
"""Each way. Pages that were never written cost nothing."""
_NAME: Final = "manyhands"
_SECRET_BYTES: Final = 16
_COUNTERS_AT: Final = (
    64,
    128,
)  # what the listening side, and the dialling side, has copied out; a cache line each
_RINGS_AT: Final = (4096, 4096 + RING_BYTES)
_SIZE: Final = 4096 + 2 * RING_BYTES
_NOTE: Final = struct.Struct(f"<{_SECRET_BYTES}sII")
_WHERE: Final = re.compile(r"([0-9]{1,10}):([0-9]{1,10}):([0-9a-f]{32})")


class Shared:
    """One stream's memory, as one of its sides has it. Each method is for one thread at a time."""

    def __init__(self, memory: mmap.mmap, secret: bytes, *, dialled: bool) -> None:
        whole = memoryview(memory)
        ours, theirs = (0, 1) if dialled else (1, 0)
        self._secret = secret
        self._out, self._in = (whole[_RINGS_AT[way] :][:RING_BYTES] for way in (ours, theirs))
        self._read_by_them, self._read_by_us = (
            whole[_COUNTERS_AT[way] :][:8].cast("Q") for way in (ours, theirs)
        )
        self._ring = Ring(RING_BYTES)
        self._known_read = 0
        self._num_read = 0

    @property
    def greeting(self) -> bytes:
        """The note that says that both sides have the memory; it is about no message."""
        return _NOTE.pack(self._secret, 0, 0)

    def wrap(self, message: bytes) -> bytes:
        """What to send on the stream: a note of where the message is now, or the message itself.

        ProtocolError where the other side counts what was never there.
        """
        size = len(message)
        if size < LEAST_BYTES:
            return message
        read = self._read_by_them[0]
        if read < self._known_read:
            raise ProtocolError(
                f"a neighbour's count of messages fell from {self._known_read} to {read}: its memory is damaged"
            )
        self._ring.free(read - self._known_read)
        self._known_read = read
        offset = self._ring.place(size)
        if offset is None:
            return message
        self._out[offset : offset + size] = message
        return _NOTE.pack(self._secret, offset, size)

    def unwrap(self, data: bytes, most_bytes: int) -> bytes:
        """The message that came: of a note, what it is about. ProtocolError where that cannot be."""
        if len(data) != _NOTE.size or not data.startswith(self._secret):
            return data
        _, offset, size = _NOTE.unpack(data)
        if not LEAST_BYTES <= size <= most_bytes or offset + size > RING_BYTES:
            raise ProtocolError(
                f"a note says that {size} bytes lie at {offset} of {RING_BYTES}; {LEAST_BYTES} to {most_bytes} may"
            )
        message = bytes(self._in[offset : offset + size])
        self._num_read += 1
        self._read_by_us[0] = self._num_read
        return message


@dataclass
class Offer:
    """Memory that the dialling side has made, until the other side has it."""

    where: str
    """What to tell it: the process, its descriptor, and the secret."""
    shared: Shared
    _descriptor: int

    @classmethod
    def make(cls) -> Offer | None:
        """New memory; None where this system has none of that kind."""
        if sys.platform != "linux":
            return None
        import fcntl

        with contextlib.suppress(OSError):
            descriptor = os.memfd_create(_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            try:
                os.ftruncate(descriptor, _SIZE)
                # Whoever cuts memory short that another process has mapped kills that process.
                fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
                memory = mmap.mmap(descriptor, _SIZE)
            except OSError:
                os.close(descriptor)
                raise
            secret = secrets.token_bytes(_SECRET_BYTES)
            memory[:_SECRET_BYTES] = secret
            where = f"{os.getpid()}:{descriptor}:{secret.hex()}"
            return cls(where, Shared(memory, secret, dialled=True), descriptor)
        return None

    def close(self) -> None:
        """It was opened, or never will be; both sides keep what they mapped. Twice is fine."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def accept(where: str) -> Shared | None:
    """The memory of a neighbour's offer; None where there is none to be had, for whatever reason.

    `where` is a peer's word: mapped is only memory of this kind and size that this user owns and that holds the secret.
    """
    found = _WHERE.fullmatch(where)
    if found is None or sys.platform != "linux":
        return None
    secret = bytes.fromhex(found[3])
    with contextlib.suppress(OSError, ValueError):
        path = Path(f"/proc/{int(found[1])}/fd/{int(found[2])}")
        if not str(path.readlink()).startswith(f"/memfd:{_NAME} "):
            return None
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            memory = _mapped(descriptor)
        finally:
            os.close(descriptor)
        if memory is not None and hmac.compare_digest(memory[:_SECRET_BYTES], secret):
            return Shared(memory, secret, dialled=False)
    return None


def _mapped(descriptor: int) -> mmap.mmap | None:
    import fcntl

    status = os.fstat(descriptor)
    seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    if status.st_uid != os.geteuid() or status.st_size != _SIZE or seals & _SEALS != _SEALS:
        return None
    return mmap.mmap(descriptor, _SIZE)


_SEALS: Final = 0x1 | 0x2 | 0x4
"""fcntl's F_SEAL_SEAL, F_SEAL_SHRINK and F_SEAL_GROW, which other systems' fcntl does not have."""
