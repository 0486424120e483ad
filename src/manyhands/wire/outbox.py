"""What waits to be sent on a stream: any thread puts, gRPC's own thread takes, bytes are bounded.

It knows messages as bytes and nothing of streams. A put never waits while there is room, so a small message
leaves at once; a put that finds the box full waits until the peer has read, or the box is closed.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import suppress

from manyhands.errors import ManyhandsError


class Outbox:
    """An iterator over messages that ends after `end`, or at once after `close`."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._room = threading.Condition()
        self._waiting_bytes = 0
        self._is_ended = False
        self._failure: ManyhandsError | None = None

    def put(self, message: bytes) -> None:
        """Add one message; blocks while the box is full. Raises the error that closed the box."""
        with self._room:
            while self._failure is None and self._is_full(len(message)):
                self._room.wait()
            if self._failure is not None:
                raise self._failure
            self._waiting_bytes += len(message)
            self._queue.put(message)

    def end(self, failure: ManyhandsError) -> None:
        """No more messages: those inside are still sent; a later put raises `failure`."""
        with self._room:
            if not self._is_ended:
                self._is_ended = True
                self._failure = self._failure or failure
                self._queue.put(None)
            self._room.notify_all()

    def close(self, failure: ManyhandsError) -> None:
        """Forget what waits; a put, waiting or later, raises `failure`."""
        with self._room:
            self._failure = failure
            with suppress(queue.Empty):  # gRPC's thread takes from it at the same time
                while True:
                    self._queue.get_nowait()
            self._waiting_bytes = 0
            self._is_ended = True
            self._queue.put(None)
            self._room.notify_all()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        """The next message; waits for one."""
        message = self._queue.get()
        if message is None:
            raise StopIteration
        with self._room:
            self._waiting_bytes = max(0, self._waiting_bytes - len(message))
            self._room.notify_all()
        return message

    def _is_full(self, size: int) -> bool:
        return self._waiting_bytes > 0 and self._waiting_bytes + size > self._limit_bytes
