"""Messages between two processes of one machine: small ones through a socket, large ones through shared memory.

A channel has two one-way halves. In each the writer owns one socket and one half of the memory; the reader
copies a message out before it looks at it, and sends a byte back for each one, which frees its place::

    writer ── kind, length, offset ──▶ reader          header of 16 bytes, little-endian
           ── bytes (up to 64 KiB) ──▶                 offset NOWHERE: the bytes follow in the socket
           ◀── one byte a message ────                 else: they lie in the memory at that offset

Neither side trusts the other: kinds, lengths and offsets are checked against what is fixed here. A message that
is whole was written whole; one that never becomes whole is the end of the other process.
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from manyhands.errors import ProtocolError, UsageError
from manyhands.pool.lending.words import Kind
from manyhands.settings.sharing import shared_descriptor
from manyhands.wire.envelope import MAX_MESSAGE_BYTES
from manyhands.wire.ring import Ring

INLINE_BYTES: Final = 1 << 16
RING_BYTES: Final = 16 << 20
"""Of each half; three of the largest messages."""
_HEADER: Final = struct.Struct("<IIQ")
_TIMEVAL: Final = struct.Struct("ll")
_NOWHERE: Final = (1 << 64) - 1
_ACK_BYTES: Final = 4096


class HungUp(Exception):
    """The other process is gone, or its end is closed."""


class Stuck(HungUp):
    """The other process takes nothing, and patience ran out in the middle of a message: the channel is spoilt."""


class Sender:
    """The writing half; safe to use from several threads."""

    def __init__(self, line: socket.socket, memory: memoryview) -> None:
        self._line = line
        self._memory = memory
        self._ring = Ring(len(memory))
        self._lock = threading.Lock()

    def send(self, kind: Kind, body: bytes = b"") -> None:
        """Hand over one message; blocks while the other side does not keep up. HungUp where it is gone, Stuck."""
        size = len(body)
        if size > MAX_MESSAGE_BYTES:
            raise UsageError(f"a message of {size} bytes; at most {MAX_MESSAGE_BYTES} pass a channel")
        try:
            with self._lock:
                if size <= INLINE_BYTES:
                    self._line.sendall(_HEADER.pack(kind, size, _NOWHERE) + body)
                else:
                    offset = self._place(size)
                    self._memory[offset : offset + size] = body
                    self._line.sendall(_HEADER.pack(kind, size, offset))
        except BlockingIOError as error:
            raise Stuck from error
        except (OSError, ValueError) as error:  # ValueError: the memory was let go by `close`
            raise HungUp from error

    def _place(self, size: int) -> int:
        """Room for `size` bytes, waiting for the other side to free some."""
        with suppress(BlockingIOError):
            self._take_acks(socket.MSG_DONTWAIT)
        while (offset := self._ring.place(size)) is None:
            self._take_acks(0)
        return offset

    def _take_acks(self, flags: int) -> None:
        acks = self._line.recv(_ACK_BYTES, flags)
        if not acks:
            raise HungUp
        self._ring.free(len(acks))


class Receiver:
    """The reading half; one thread at a time."""

    def __init__(self, line: socket.socket, memory: memoryview, kinds: frozenset[Kind]) -> None:
        self._line = line
        self._memory = memory
        self._kinds = kinds
        self._header = bytearray(_HEADER.size)

    def receive(self) -> tuple[Kind, bytes]:
        """The next message. HungUp at the end, ProtocolError where it breaks the rules above."""
        try:
            self._fill(memoryview(self._header))
            kind, size, offset = _HEADER.unpack(self._header)
            if kind not in self._kinds:
                raise ProtocolError(f"the other process sent kind {kind}, which is not for it to say")
            if offset == _NOWHERE:
                return Kind(kind), self._inline(size)
            return Kind(kind), self._shared(size, offset)
        except (OSError, ValueError) as error:
            raise HungUp from error

    def _inline(self, size: int) -> bytes:
        if size > INLINE_BYTES:
            raise ProtocolError(
                f"the other process announced {size} bytes in the socket, over {INLINE_BYTES}"
            )
        body = bytearray(size)
        self._fill(memoryview(body))
        return bytes(body)

    def _shared(self, size: int, offset: int) -> bytes:
        if not INLINE_BYTES < size <= MAX_MESSAGE_BYTES or offset + size > len(self._memory):
            raise ProtocolError(
                f"the other process announced {size} bytes at {offset} of a memory of {len(self._memory)}"
            )
        body = bytes(self._memory[offset : offset + size])
        self._line.sendall(b"\x01")
        return body

    def _fill(self, target: memoryview) -> None:
        while target:
            count = self._line.recv_into(target)
            if not count:
                raise HungUp
            target = target[count:]


class Channel:
    """Both halves, as one process sees them; `hears` are the kinds that the other one may send."""

    def __init__(
        self,
        sends: socket.socket,
        receives: socket.socket,
        memory: mmap.mmap,
        hears: frozenset[Kind],
        *,
        down: bool,
    ) -> None:
        self._lines = (sends, receives)
        view = memoryview(memory)
        halves = view[:RING_BYTES], view[RING_BYTES:]
        self._sender = Sender(sends, halves[0 if down else 1])
        self._receiver = Receiver(receives, halves[1 if down else 0], hears)
        self.send = self._sender.send
        self.receive = self._receiver.receive

    def close(self) -> None:
        """End it, from any thread: whoever waits in it hangs up, on both sides. Twice is fine."""
        for line in self._lines:
            try:
                line.shutdown(socket.SHUT_RDWR)
            except OSError:  # ended already
                continue

    def release(self) -> None:
        """Give the descriptors back; nobody may be inside any more."""
        for line in self._lines:
            line.close()


def open_pair(
    hears: frozenset[Kind], patience_seconds: int | None = None
) -> tuple[Channel, tuple[int, int, int]]:
    """The agent's end, and the child's descriptors: it receives on, sends on, and maps the third.

    The descriptors are the caller's to close once the child has them. With patience, sending to a child that takes
    nothing for so long is Stuck.
    """
    memory = shared_descriptor(2 * RING_BYTES)
    mine, theirs = socket.socketpair()
    if patience_seconds is not None:
        for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
            mine.setsockopt(socket.SOL_SOCKET, option, _TIMEVAL.pack(patience_seconds, 0))
    heard, told = socket.socketpair()
    channel = Channel(mine, heard, mmap.mmap(memory, 2 * RING_BYTES), hears, down=True)
    return channel, (theirs.detach(), told.detach(), memory)


def adopt(descriptors: Sequence[int], hears: frozenset[Kind]) -> Channel:
    """The child's end, from the descriptors that it was started with."""
    receives, sends, memory = descriptors
    shared = mmap.mmap(memory, 2 * RING_BYTES)
    os.close(memory)
    return Channel(socket.socket(fileno=sends), socket.socket(fileno=receives), shared, hears, down=False)
