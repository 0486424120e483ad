"""Bodies larger than a message: cut into chunks here, and collected there without copying.

The sender announces a transfer's id and size in a typed message, then sends its chunks in order, mixed
with whatever else the stream carries. :class:`Incoming` keeps one stream's open transfers under caps that
do not depend on what the peer claims. Bytes in, bodies out: no stream, no meaning of a body.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Protocol

import torch
from torch import Tensor

from manyhands.errors import ProtocolError, UsageError
from manyhands.tensors import memory
from manyhands.wire.envelope import MAX_PAYLOAD_BYTES

CHUNK_BYTES: Final = 1 << 20
MIN_CHUNK_BYTES: Final = 4096
"""No chunk but the last may be smaller: keeping one costs some 400 bytes whatever its size."""

Chunk = tuple[int, memoryview]


def chunks(body: memoryview, chunk_bytes: int = CHUNK_BYTES) -> Iterator[Chunk]:
    """Parts of a contiguous `body` in order, each with its offset; nothing is copied."""
    if not MIN_CHUNK_BYTES <= chunk_bytes <= MAX_PAYLOAD_BYTES:
        raise UsageError(
            f"chunks of {chunk_bytes} bytes; {MIN_CHUNK_BYTES} to {MAX_PAYLOAD_BYTES} are allowed"
        )
    return _cut(body.cast("B") if body.nbytes and (body.format, body.ndim) != ("B", 1) else body, chunk_bytes)


def _cut(body: memoryview, chunk_bytes: int) -> Iterator[Chunk]:
    for offset in range(0, body.nbytes, chunk_bytes):
        yield offset, body[offset : offset + chunk_bytes]


class Place(Protocol):
    """Where a body can be put as it arrives."""

    @property
    def bytes(self) -> memoryview:
        """Writable, contiguous, of the body's size."""
        ...


@dataclass(frozen=True)
class Body:
    """A transfer that arrived whole: `chunks` are in order, without holes, and make `num_bytes`.

    With a `place`, that is where they are, as one.
    """

    transfer: int
    num_bytes: int
    chunks: tuple[Chunk, ...]
    place: Place | None = None

    def copy_into(self, target: Tensor) -> None:
        """Copy the body into `target`, uint8 ``(num_bytes,)`` contiguous on the CPU; else UsageError."""
        if target.dtype != torch.uint8 or target.shape != (self.num_bytes,) or not target.is_contiguous():
            raise UsageError(
                f"a body of {self.num_bytes} bytes goes into a contiguous 1-d uint8 tensor of that size, "
                f"not {target.dtype} {tuple(target.shape)}"
            )
        self.copy_to(memory.bytes_of(target))

    def copy_to(self, target: memoryview) -> None:
        """Copy the body into writable bytes that the caller has found to be as many."""
        for offset, chunk in self.chunks:
            target[offset : offset + len(chunk)] = chunk

    def to_tensor(self) -> Tensor:
        """The body as uint8 ``(num_bytes,)``, aligned to 64 bytes and writable; one copy."""
        target = memory.allocate(self.num_bytes)
        self.copy_into(target)
        return target


@dataclass
class _Open:
    num_bytes: int
    place: Place | None = None
    received: int = 0
    chunks: list[Chunk] = field(default_factory=list)


class Incoming:
    """The transfers open on one stream.

    `max_open` and `max_open_bytes` bound what a peer may announce at once; bytes count from the
    announcement until the transfer is whole or dropped. Nothing is allocated for an announcement.
    """

    def __init__(self, *, max_open: int, max_open_bytes: int) -> None:
        self._max_open = max_open
        self._max_open_bytes = max_open_bytes
        self._open: dict[int, _Open] = {}
        self._open_bytes = 0

    @property
    def open_bytes(self) -> int:
        """Bytes announced by the transfers that are neither whole nor dropped."""
        return self._open_bytes

    def __len__(self) -> int:
        return len(self._open)

    def announce(self, transfer: int, num_bytes: int, place: Place | None = None) -> Body | None:
        """Expect `num_bytes` for `transfer`; one of zero bytes is whole at once and returned.

        With a `place` its chunks are copied there as they come, while they are in the processor's cache, and are
        not kept; what is there before the body is whole means nothing.

        ProtocolError where the id is 0 or in use, the size is negative, or a cap would be passed.
        """
        if transfer <= 0 or transfer in self._open:
            raise ProtocolError(
                f"transfer {transfer} was announced, and that id is {'in use' if transfer else 'none'}"
            )
        if num_bytes < 0 or self._open_bytes + num_bytes > self._max_open_bytes:
            raise ProtocolError(
                f"transfer {transfer} announces {num_bytes} bytes beside {self._open_bytes} open ones; "
                f"at most {self._max_open_bytes} are allowed"
            )
        if num_bytes == 0:
            return Body(transfer, 0, ())
        if len(self._open) >= self._max_open:
            raise ProtocolError(
                f"transfer {transfer} was announced beside {len(self._open)} open ones, the most allowed"
            )
        self._open[transfer] = _Open(num_bytes, place)
        self._open_bytes += num_bytes
        return None

    def feed(self, transfer: int, offset: int, payload: memoryview) -> Body | None:
        """Take the next chunk, kept without a copy (or put in its place); returns the body it makes whole, else None.

        ProtocolError, and nothing kept of the chunk, where it is for no open transfer, out of order, too
        long, or shorter than 4096 bytes without being the last.
        """
        entry = self._open.get(transfer)
        if entry is None:
            raise ProtocolError(f"a chunk came for transfer {transfer}, which is not open")
        size = len(payload)
        end = offset + size
        if offset != entry.received:
            raise ProtocolError(
                f"transfer {transfer} has {entry.received} bytes, and its next chunk is at {offset}"
            )
        if end > entry.num_bytes:
            raise ProtocolError(
                f"transfer {transfer} announced {entry.num_bytes} bytes, and a chunk ends at {end}"
            )
        if size < MIN_CHUNK_BYTES and end != entry.num_bytes:
            raise ProtocolError(
                f"transfer {transfer} sent a chunk of {size} bytes; {MIN_CHUNK_BYTES} is the least"
            )
        if entry.place is not None:
            entry.place.bytes[offset:end] = payload
        else:
            entry.chunks.append((offset, _kept(payload)))
        entry.received = end
        if end < entry.num_bytes:
            return None
        self.drop(transfer)
        whole = entry.chunks if entry.place is None else [(0, entry.place.bytes)]
        return Body(transfer, entry.num_bytes, tuple(whole), entry.place)

    def drop(self, transfer: int) -> bool:
        """Forget `transfer` and what came of it; False where it is not open."""
        entry = self._open.pop(transfer, None)
        if entry is None:
            return False
        self._open_bytes -= entry.num_bytes
        return True


def _kept(payload: memoryview) -> memoryview:
    """`payload`, or a copy where keeping it would keep a message of more than twice its size alive."""
    message = payload.obj
    if isinstance(message, bytes) and len(message) > 2 * len(payload) + MIN_CHUNK_BYTES:
        return memoryview(bytes(payload))
    return payload
