"""One stream between a coordinator and a compute child: messages pass byte for byte, in both directions.

The agent looks at two things only: the run's Welcome as it passes, and the bytes that were counted. What the child
says goes up on the caller's thread, what the coordinator says goes down on one of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

from manyhands.errors import ManyhandsError
from manyhands.fleet import messages as m
from manyhands.pool.lending.channel import Channel, HungUp
from manyhands.pool.lending.words import Ending, Kind, ending_of, pack
from manyhands.wire.dialer import ClientStream, Connection
from manyhands.wire.envelope import pack as pack_message
from manyhands.wire.envelope import unpack as unpack_message

GOODBYE_SECONDS = 5.0


class Relay:
    """One stream, from `start` to `close`."""

    def __init__(
        self, connection: Connection, channel: Channel, welcomed: Callable[[m.Welcome], None]
    ) -> None:
        self._connection = connection
        self._channel = channel
        self._welcomed: Callable[[m.Welcome], None] | None = welcomed
        self._stream: ClientStream
        self._pump = threading.Thread(target=self._down, name="manyhands-relay", daemon=True)
        self.num_passed = 0
        """Messages that came down so far."""

    def start(self) -> None:
        """Open the stream and let the child know. Unreachable where the connection is gone, HungUp the child."""
        self._stream = self._connection.stream()
        self._channel.send(Kind.OPENED)
        self._pump.start()

    def send(self, message: bytes) -> None:
        """Pass on what the child says; on a stream that is over it is dropped, and the child hears of the end."""
        with suppress(ManyhandsError):
            self._stream.send(message)

    def finish(self) -> None:
        """The child says no more."""
        self._stream.finish()

    def leave(self, reason: str) -> None:
        """Say goodbye in the child's place: the coordinator leases to others at once, and ends the stream."""
        with suppress(ManyhandsError):
            self._stream.send(pack_message(m.encode(m.Leaving(reason))))
            self._stream.finish()
            self._pump.join(GOODBYE_SECONDS)

    def close(self) -> None:
        """End the stream and its connection; the child has been told when this returns."""
        self._stream.close()
        self._pump.join()
        self._connection.close()

    @property
    def sent_bytes(self) -> int:
        """Bytes to the coordinator."""
        return self._stream.sent_bytes

    @property
    def received_bytes(self) -> int:
        """Bytes from the coordinator."""
        return self._stream.received_bytes

    def _down(self) -> None:
        ending = Ending()
        try:
            while (message := self._stream.receive()) is not None:
                self._pass(message)
        except ManyhandsError as error:
            ending = ending_of(error)
        with suppress(HungUp):
            self._channel.send(Kind.ENDED, pack(ending))

    def _pass(self, message: bytes) -> None:
        if self._welcomed is not None:
            self._look(message)
        with suppress(HungUp):  # a child that died needs nothing more; the stream is read on, to its end
            self._channel.send(Kind.MESSAGE, message)
        self.num_passed += 1

    def _look(self, message: bytes) -> None:
        """Find the Welcome: the first thing that a coordinator says, unless it says no."""
        for said in m.decode_from_coordinator(unpack_message(message).control):
            if isinstance(said, m.Welcome) and self._welcomed is not None:
                self._welcomed(said)
        self._welcomed = None
