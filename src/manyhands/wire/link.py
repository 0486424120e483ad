"""The listener's end of one stream: messages in, messages out, and one reason for its end.

It knows one gRPC context and the peer behind it. It must not know who may come in, nor what a message
means.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from grpc.aio import EOF

from manyhands.errors import ManyhandsError, ProtocolError, Refused, Unreachable
from manyhands.wire.admission import Peer
from manyhands.wire.shared import Shared


class Link:
    """One live stream. Reading and writing may go on in two tasks at once; each by one task at a time.

    The handler that got the link is cancelled when the peer's connection breaks or the link is closed.
    `sent_bytes` and `received_bytes` count messages, without what TLS and HTTP/2 add.
    """

    def __init__(self, peer: Peer, context: grpc.aio.ServicerContext[Any, Any], message_bytes: int) -> None:
        self.peer = peer
        self.sent_bytes = 0
        self.received_bytes = 0
        self.ended = asyncio.Event()
        self.closing: asyncio.Future[ManyhandsError] = asyncio.get_running_loop().create_future()
        self._context = context
        self._message_bytes = message_bytes
        self._shared: Shared | None = None

    async def share(self, shared: Shared) -> None:
        """From now on large messages pass through memory that both sides have; before anything else is written."""
        await self.write(shared.greeting)
        self._shared = shared

    def release(self) -> None:
        """The stream is over: its memory goes now, and not when gRPC forgets its call."""
        self._shared = None

    @property
    def address(self) -> str:
        """Where the peer dials from, as gRPC writes it (`"ipv4:127.0.0.1:40000"`); for logs only."""
        return str(self._context.peer())

    async def read(self) -> bytes | None:
        """The next message; None when the peer sends no more.

        None may come just before the cancellation of a broken connection, so it is no goodbye: a peer
        that is done says so in a message.
        """
        try:
            message = await self._context.read()
        except _BROKEN as error:
            raise Unreachable(f"the stream of node {self.peer.key_id[:8]} broke: {error}") from None
        if message is EOF:
            return None
        if self._shared is not None:
            message = self._shared.unwrap(message, self._message_bytes)
        self.received_bytes += len(message)
        return bytes(message)

    async def write(self, message: bytes) -> None:
        """Send one message; returns when gRPC has taken it, so a peer that does not read makes this wait.

        Raises `ProtocolError` for a message over the limit and `Unreachable` where the stream is broken.
        """
        check_size(message, self._message_bytes)
        try:
            await self._context.write(message if self._shared is None else self._shared.wrap(message))
            self.sent_bytes += len(message)
        except _BROKEN as error:
            raise Unreachable(f"the stream of node {self.peer.key_id[:8]} broke: {error}") from None

    def close(self, reason: str | ManyhandsError) -> None:
        """End the stream and tell the peer why; call it in the listener's event loop, it returns at once.

        A sentence is a refusal (the peer does not come back by itself); an `Unreachable` asks it to.
        """
        if not self.closing.done():
            self.closing.set_result(Refused(reason) if isinstance(reason, str) else reason)


def check_size(message: bytes, limit_bytes: int) -> None:
    """Raise `ProtocolError` for a message that the other side would not take."""
    if len(message) > limit_bytes:
        raise ProtocolError(
            f"a message of {len(message):,} bytes is over the limit of {limit_bytes:,}: send it in chunks"
        )


# What grpc.aio raises for a call that is over depends on how it ended; none of them is a bug of ours.
_BROKEN = (grpc.RpcError, grpc.aio.UsageError, grpc.aio.InternalError, asyncio.InvalidStateError)
