"""One node's stream as the coordinator sees it: messages in, an outbox out.

The outbox keeps order, puts small messages that wait together into one envelope, and forgets a state that a
newer one has overtaken, so a slow node never holds more than one. A change of state needs the one before: it
overtakes nothing, and a whole state overtakes it. Runs on the coordinator's event loop;
decides nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from manyhands.errors import ProtocolError
from manyhands.fleet.messages import Delivered, FromNode, decode_from_node, encode
from manyhands.wire.envelope import pack, unpack
from manyhands.wire.transfer import Body, Incoming, Place, chunks

CHUNK_BYTES = 1 << 20
MAX_OPEN_TRANSFERS = 4
MAX_LOOSE_MESSAGES = 64
"""How many messages travel as one; all of them must fit one control part."""
MAX_WAITING = 4096
"""How many messages may wait for a node that goes on talking and does not listen."""


class Link(Protocol):
    """A stream of opaque messages (wire/listener.py)."""

    async def read(self) -> bytes | None:
        """The next message, or None at the end."""
        ...

    async def write(self, message: bytes) -> None:
        """Send one message; returns when the transport has taken it."""
        ...


@dataclass(frozen=True)
class Bulk:
    """A message that announces a body, packed once: for as many sessions as want it."""

    message: Any
    transfer: int
    payload: bytes
    envelopes: tuple[bytes, ...] = ()
    supersedes: bool = False
    is_change: bool = False

    @classmethod
    def of(
        cls,
        message: Any,
        transfer: int,
        body: bytes | memoryview,
        *,
        supersedes: bool = False,
        is_change: bool = False,
    ) -> Bulk:
        """Pack `body`. One that fits a chunk stays loose, to travel with its neighbours in the outbox."""
        if len(body) <= CHUNK_BYTES:
            return cls(message, transfer, bytes(body), (), supersedes, is_change)
        first = encode(message)
        envelopes = tuple(
            pack(b"" if offset else first, transfer=transfer, offset=offset, payload=payload)
            for offset, payload in chunks(memoryview(body), CHUNK_BYTES)
        )
        return cls(message, transfer, b"", envelopes, supersedes, is_change)


class Session:
    """Reads and writes one link; `place_for` may say where a sum that is announced is to be put."""

    def __init__(
        self,
        link: Link,
        *,
        max_body_bytes: int,
        place_for: Callable[[Delivered], Place | None] = lambda message: None,
    ) -> None:
        self._link = link
        self._place_for = place_for
        self._outbox: deque[Any] = deque()
        self._wake = asyncio.Event()
        self._incoming = Incoming(
            max_open=MAX_OPEN_TRANSFERS, max_open_bytes=MAX_OPEN_TRANSFERS * max_body_bytes
        )
        self._closing = False
        self.sent_bytes = 0
        self.received_bytes = 0

    # ---- out ----

    def post(self, *items: Any) -> None:
        """Put messages and Bulks behind what waits already."""
        for item in items:
            if isinstance(item, Bulk) and item.supersedes:
                self._forget_superseded(item.transfer)
            self._outbox.append(item)
        self._wake.set()

    def _forget_superseded(self, newer: int) -> None:
        def is_old(item: Any) -> bool:
            return _is_state(item) and item.transfer != newer

        if any(is_old(item) for item in self._outbox):
            self._outbox = deque(item for item in self._outbox if not is_old(item))

    @property
    def has_states_waiting(self) -> bool:
        """Whether the node has not even been sent what it should hold."""
        return any(_is_state(item) for item in self._outbox)

    def finish(self) -> None:
        """Close after everything posted is written."""
        self._closing = True
        self._wake.set()

    async def write_all(self) -> None:
        """Write the outbox until `finish`."""
        while True:
            while self._outbox:
                for message in self._next():
                    self.sent_bytes += len(message)
                    await self._link.write(message)
            if self._closing:
                return
            self._wake.clear()
            await self._wake.wait()

    def _next(self) -> Sequence[bytes]:
        """The envelopes that the head of the outbox makes: one for all loose messages up to a body."""
        messages: list[Any] = []
        while self._outbox and len(messages) < MAX_LOOSE_MESSAGES:
            item = self._outbox[0]
            if not isinstance(item, Bulk):
                messages.append(self._outbox.popleft())
                continue
            if item.envelopes:
                if messages:
                    break
                return self._outbox.popleft().envelopes  # type: ignore[no-any-return]
            self._outbox.popleft()
            messages.append(item.message)
            messages.extend(self._loose())
            return (pack(encode(*messages), transfer=item.transfer, offset=0, payload=item.payload),)
        return (pack(encode(*messages)),)

    def _loose(self) -> list[Any]:
        taken: list[Any] = []
        while self._outbox and len(taken) < MAX_LOOSE_MESSAGES and not isinstance(self._outbox[0], Bulk):
            taken.append(self._outbox.popleft())
        return taken

    # ---- in ----

    async def messages(self) -> AsyncIterator[tuple[FromNode, Body | None]]:
        """What the node says; a Delivered comes when its body is whole.

        ProtocolError for bytes that mean nothing, or bodies beyond what was announced.
        """
        waiting: dict[int, Delivered] = {}
        while (data := await self._link.read()) is not None:
            self.received_bytes += len(data)
            if len(self._outbox) > MAX_WAITING:
                raise ProtocolError(
                    f"{len(self._outbox)} messages wait for this node, which talks and reads none"
                )
            envelope = unpack(data)
            if envelope.control:
                for message in decode_from_node(envelope.control):
                    if isinstance(message, Delivered):
                        place = self._place_for(message)
                        empty = self._incoming.announce(message.transfer, message.num_bytes, place)
                        if empty is not None:
                            yield message, empty
                        else:
                            waiting[message.transfer] = message
                    else:
                        yield message, None
            if envelope.transfer:
                body = self._incoming.feed(envelope.transfer, envelope.offset, envelope.payload)
                if body is not None:
                    yield waiting.pop(envelope.transfer), body
            elif envelope.payload:
                raise ProtocolError(f"{len(envelope.payload)} bytes of payload belong to no transfer")


def _is_state(item: Any) -> bool:
    return isinstance(item, Bulk) and (item.supersedes or item.is_change)
