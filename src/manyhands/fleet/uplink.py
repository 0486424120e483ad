"""A node's end of its stream: an inbox, whoever fills it, and a packer for what is sent.

A node that waits reads the stream itself: handing each message over from another thread took a tenth of a short
step. While it computes, a watcher thread takes its turn, and calls `urgent` at once for the few messages that
must reach a busy node::

    caller    next() ─ reads ─ item      computes ...................... next() ─ asks for its turn ─ item
    watcher             idle              after 10 ms: reads ─ urgent ─ inbox ...... gives it back

Messages come in order, each with its body where it announced one. Knows nothing of training.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable
from typing import Any, Protocol

from manyhands.clock import Clock, SystemClock
from manyhands.errors import ManyhandsError, ProtocolError, Unreachable
from manyhands.fleet.messages import (
    Batch,
    Delivered,
    Everything,
    FromCoordinator,
    Leaving,
    Program,
    State,
    decode_from_coordinator,
    encode,
)
from manyhands.wire.envelope import pack, unpack
from manyhands.wire.transfer import Body, Incoming, chunks

CHUNK_BYTES = 1 << 20
MAX_OPEN_TRANSFERS = 64
WATCH_SECONDS = 0.01
"""How long a node may compute before its watcher begins to read."""


class Stream(Protocol):
    """A client's stream of opaque messages (wire/dialer.py)."""

    def send(self, message: bytes) -> None:
        """Queue one message; never blocks on the network."""
        ...

    def receive(self) -> bytes | None:
        """The next message, None at the end; raises Unreachable or Refused."""
        ...

    def finish(self) -> None:
        """Send what waits, then no more."""
        ...

    def close(self) -> None:
        """End the stream at once."""
        ...


class Lost:
    """The inbox's last item: the stream ended, and why."""

    def __init__(self, error: ManyhandsError) -> None:
        self.error = error


Item = tuple[FromCoordinator, Body | None] | Lost


class Uplink:
    """One connection's stream, from the node's side."""

    def __init__(self, stream: Stream, *, max_body_bytes: int, clock: Clock | None = None) -> None:
        self._stream = stream
        self._urgent: Callable[[FromCoordinator], None] = lambda message: None
        self._incoming = Incoming(max_open=MAX_OPEN_TRANSFERS, max_open_bytes=4 * max_body_bytes)
        self._transfers = itertools.count(1)
        self._waiting: dict[int, FromCoordinator] = {}
        self._turn = threading.Lock()
        self._left_at = 0.0
        self._is_wanted = False
        self._num_given = 0
        self._watcher = threading.Thread(target=self._watch, name="manyhands-watcher", daemon=True)
        self._inbox: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._clock = clock or SystemClock()
        self.lost = threading.Event()
        self.sent_bytes = 0
        self.received_bytes = 0

    def start(self, urgent: Callable[[FromCoordinator], None]) -> None:
        """Begin to read; `urgent` sees each message at once, on whichever thread reads."""
        self._urgent = urgent
        self._watcher.start()

    def next(self) -> Item:
        """The next item, waiting for it; after a Lost there is none. One thread at a time."""
        while True:
            try:
                return self._inbox.get_nowait()
            except queue.Empty:
                pass
            if not self._turn.acquire(blocking=False):
                self._is_wanted = True  # the watcher gives its turn back with the next item
                item = self._inbox.get()
                self._left_at = self._clock.monotonic()
                return item
            try:
                self._read_one()
            finally:
                self._left_at = self._clock.monotonic()
                self._turn.release()

    def leave(self, reason: str) -> None:
        """Say goodbye and no more; the coordinator ends the stream, which whoever reads it then hears."""
        self.send(Leaving(reason))
        self._stream.finish()

    def finish(self) -> None:
        """Say no more: what was sent still goes out, and the coordinator ends the stream."""
        self._stream.finish()
        self._watcher.join(timeout=5.0)

    def close(self) -> None:
        """End the stream; the watcher ends with it."""
        self._stream.close()
        self.lost.set()
        self._watcher.join(timeout=5.0)

    def send(self, *messages: Any) -> None:
        """Send messages without a body."""
        self._push(pack(encode(*messages)))

    def deliver(self, message: Callable[[int], Delivered], body: memoryview) -> None:
        """Send a partial sum; `message` gets the transfer's number. `body` is free again on return."""
        transfer = next(self._transfers)
        control = encode(message(transfer))
        for offset, payload in chunks(body, CHUNK_BYTES):
            self._push(pack(b"" if offset else control, transfer=transfer, offset=offset, payload=payload))

    def _push(self, data: bytes) -> None:
        self.sent_bytes += len(data)
        self._stream.send(data)

    # ---- reading: by whoever has the turn ----

    def _watch(self) -> None:
        while not self.lost.wait(WATCH_SECONDS):
            is_busy = self._clock.monotonic() - self._left_at >= WATCH_SECONDS
            if not is_busy or not self._turn.acquire(blocking=False):
                continue
            try:
                self._read_until_wanted()
            finally:
                self._is_wanted = False
                self._turn.release()

    def _read_until_wanted(self) -> None:
        """Read on; once the caller waits for its turn, stop with the item that it waits for."""
        while not self.lost.is_set():
            given = self._num_given
            self._read_one()
            if self._is_wanted and self._num_given > given:
                return

    def _read_one(self) -> None:
        """One message of the stream into the inbox, or its end."""
        try:
            data = self._stream.receive()
            if data is None:
                raise Unreachable("the coordinator closed the stream without a word")
            self._take(data)
        except ManyhandsError as error:
            self._end(error)
        except Exception as error:  # noqa: BLE001 - perhaps a thread's edge: whatever broke must reach the caller
            self._end(ProtocolError(f"reading from the coordinator failed: {type(error).__name__}: {error}"))

    def _end(self, error: ManyhandsError) -> None:
        self.lost.set()
        self._give(Lost(error))

    def _take(self, data: bytes) -> None:
        self.received_bytes += len(data)
        envelope = unpack(data)
        after: list[FromCoordinator] = []
        if envelope.control:
            for message in decode_from_coordinator(envelope.control):
                if isinstance(message, State | Batch | Everything | Program):
                    self._announce(message)
                elif self._waiting:
                    after.append(message)
                else:
                    self._hand_over(message)
        if envelope.transfer:
            body = self._incoming.feed(envelope.transfer, envelope.offset, envelope.payload)
            if body is not None:
                self._give((self._waiting.pop(envelope.transfer), body))
        for message in after:
            self._hand_over(message)

    def _announce(self, message: State | Batch | Everything | Program) -> None:
        if isinstance(message, State):  # a newer state overtakes one that is still on its way
            for transfer in [t for t, m in self._waiting.items() if isinstance(m, State)]:
                self._incoming.drop(transfer)
                del self._waiting[transfer]
        empty = self._incoming.announce(message.transfer, message.num_bytes)
        if empty is not None:
            self._give((message, empty))
        else:
            self._waiting[message.transfer] = message

    def _give(self, item: Item) -> None:
        self._num_given += 1
        self._inbox.put(item)

    def _hand_over(self, message: FromCoordinator) -> None:
        self._urgent(message)
        self._give((message, None))
