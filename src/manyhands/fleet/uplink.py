"""A node's end of its stream: a reader thread that fills an inbox, and a packer for what is sent.

The reader hands over messages in order, each with its body where it announced one, and calls `urgent` at once
for the few that must reach a busy node. Knows nothing of training.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable
from typing import Any, Protocol

from manyhands.errors import ManyhandsError, ProtocolError, Unreachable
from manyhands.fleet.messages import (
    Batch,
    Delivered,
    Everything,
    FromCoordinator,
    State,
    decode_from_coordinator,
    encode,
)
from manyhands.wire.envelope import pack, unpack
from manyhands.wire.transfer import Body, Incoming, chunks

CHUNK_BYTES = 1 << 20
MAX_OPEN_TRANSFERS = 64


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

    def __init__(self, stream: Stream, *, max_body_bytes: int) -> None:
        self._stream = stream
        self._urgent: Callable[[FromCoordinator], None] = lambda message: None
        self._incoming = Incoming(max_open=MAX_OPEN_TRANSFERS, max_open_bytes=4 * max_body_bytes)
        self._transfers = itertools.count(1)
        self._reader = threading.Thread(target=self._read, name="manyhands-reader", daemon=True)
        self.inbox: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self.lost = threading.Event()
        self.sent_bytes = 0
        self.received_bytes = 0

    def start(self, urgent: Callable[[FromCoordinator], None]) -> None:
        """Begin to read; `urgent` sees each message at once, on the reader's thread."""
        self._urgent = urgent
        self._reader.start()

    def finish(self) -> None:
        """Say no more: what was sent still goes out, and the coordinator ends the stream."""
        self._stream.finish()
        self._reader.join(timeout=5.0)

    def close(self) -> None:
        """End the stream; the reader thread ends with it."""
        self._stream.close()
        self._reader.join(timeout=5.0)

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

    def _read(self) -> None:
        try:
            self._read_all()
            self._end(Unreachable("the coordinator closed the stream without a word"))
        except ManyhandsError as error:
            self._end(error)
        except Exception as error:  # noqa: BLE001 - the thread's edge: whatever broke must reach the caller's thread
            self._end(ProtocolError(f"reading from the coordinator failed: {type(error).__name__}: {error}"))

    def _end(self, error: ManyhandsError) -> None:
        self.lost.set()
        self.inbox.put(Lost(error))

    def _read_all(self) -> None:
        waiting: dict[int, FromCoordinator] = {}
        while (data := self._stream.receive()) is not None:
            self.received_bytes += len(data)
            envelope = unpack(data)
            after: list[FromCoordinator] = []
            if envelope.control:
                for message in decode_from_coordinator(envelope.control):
                    if isinstance(message, State | Batch | Everything):
                        self._announce(message, waiting)
                    elif waiting:
                        after.append(message)
                    else:
                        self._hand_over(message)
            if envelope.transfer:
                body = self._incoming.feed(envelope.transfer, envelope.offset, envelope.payload)
                if body is not None:
                    self.inbox.put((waiting.pop(envelope.transfer), body))
            for message in after:
                self._hand_over(message)

    def _announce(self, message: State | Batch | Everything, waiting: dict[int, FromCoordinator]) -> None:
        if isinstance(message, State):  # a newer state overtakes one that is still on its way
            for transfer in [t for t, m in waiting.items() if isinstance(m, State)]:
                self._incoming.drop(transfer)
                del waiting[transfer]
        empty = self._incoming.announce(message.transfer, message.num_bytes)
        if empty is not None:
            self.inbox.put((message, empty))
        else:
            waiting[message.transfer] = message

    def _hand_over(self, message: FromCoordinator) -> None:
        self._urgent(message)
        self.inbox.put((message, None))
