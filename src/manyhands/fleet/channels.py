"""A stream of parcels between two machines, whoever dialled: send from any thread, arrivals go to one inbox.

::

    Dialled  (we dialled)    send ─► gRPC's outbox            reader thread ─► deliver(message, tree)
    Answered (they dialled)  send ─► queue ─► event loop      event loop    ─► deliver(message, tree)

Knows no message's meaning; the end of a stream is delivered like a message, as a `Lost`.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar

import msgspec

from manyhands.errors import ManyhandsError, ProtocolError, Unreachable
from manyhands.fleet.parcels import Parcels, pack
from manyhands.wire import ClientStream, Link

_T = TypeVar("_T")
_LAST_WRITE_SECONDS: Final = 1.0
MAX_WAITING_BYTES: Final = 32 << 20
"""How much may wait for a peer that does not read before `send` waits too."""


@dataclass(frozen=True)
class Lost:
    """The last delivery of a channel: why it ended."""

    error: ManyhandsError


Deliver = Callable[[Any, Any], None]
"""Called with (message, tree), or (`Lost`, None) once at the end; from whichever thread reads."""


class Channel(Protocol):
    """One peer's stream."""

    def send(self, message: msgspec.Struct, tree: Any = None) -> None:
        """Send a message with its tensors, which may change once this returns.

        From any thread, waiting where much waits already. Raises Unreachable where the stream has ended.
        """
        ...

    def close(self) -> None:
        """End it at once; what waits is forgotten. From any thread; twice is fine."""
        ...


class Dialled(Generic[_T]):
    """The channel of the side that dialled."""

    def __init__(self, stream: ClientStream, parcels: Parcels[_T], deliver: Deliver) -> None:
        self._stream = stream
        self._parcels = parcels
        self._deliver = deliver
        self._order = threading.Lock()
        self._reader = threading.Thread(target=self._read, name="manyhands-channel", daemon=True)

    def start(self) -> None:
        """Begin to deliver."""
        self._reader.start()

    def send(self, message: msgspec.Struct, tree: Any = None) -> None:
        """See `Channel`."""
        with self._order:
            for data in pack(message, tree):
                self._stream.send(data)

    def finish(self) -> None:
        """Say no more: what waits is still sent."""
        self._stream.finish()

    def close(self) -> None:
        """See `Channel`."""
        self._stream.close()
        if self._reader.is_alive() and threading.current_thread() is not self._reader:
            self._reader.join(timeout=5.0)

    def _read(self) -> None:
        try:
            while (data := self._stream.receive()) is not None:
                parcel = self._parcels.feed(data)
                if parcel is not None:
                    self._deliver(*parcel)
            self._deliver(Lost(Unreachable("the other side ended the stream")), None)
        except ManyhandsError as error:
            self._deliver(Lost(error), None)
        except Exception as error:  # noqa: BLE001 - a thread's edge: whatever broke must reach who waits
            self._deliver(Lost(ProtocolError(f"reading a stream failed: {error!r}")), None)


class Answered(Generic[_T]):
    """The channel of the side that was dialled: made and served in the listener's event loop."""

    def __init__(self, link: Link, parcels: Parcels[_T], deliver: Deliver) -> None:
        self._link = link
        self._parcels = parcels
        self._deliver = deliver
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._room = threading.Condition()
        self._wake = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()
        self._is_over = False

    @property
    def peer_address(self) -> str:
        """Where it dials from, as gRPC writes it."""
        return self._link.address

    def send(self, message: msgspec.Struct, tree: Any = None) -> None:
        """See `Channel`. In the event loop's own thread it never waits: `flush` does."""
        envelopes = list(pack(message, tree))
        num_bytes = sum(map(len, envelopes))
        is_inside = threading.get_ident() == self._thread
        with self._room:
            while not (is_inside or self._is_over) and self._is_full(num_bytes):
                self._room.wait()
            if self._is_over:
                raise Unreachable("the stream of this peer has ended")
            self._waiting.extend(envelopes)
            self._waiting_bytes += num_bytes
        if is_inside:
            self._begin()
        else:
            with contextlib.suppress(RuntimeError):  # the loop ended this moment: the stream's end says so
                self._loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        self._drained.clear()
        self._wake.set()

    async def flush(self) -> None:
        """Return when what was sent so far is with gRPC, or the stream is over."""
        await self._drained.wait()

    async def serve(self) -> None:
        """Read and write until the peer goes or `close`; delivers a `Lost` at the end, whatever happens."""
        writer = asyncio.create_task(self._write())
        reader = asyncio.create_task(self._read())
        error: ManyhandsError = Unreachable("the stream broke")
        try:
            done, _ = await asyncio.wait({writer, reader}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            error = Unreachable("the other side ended the stream")
        except ManyhandsError as failure:
            error = failure
            raise
        finally:
            reader.cancel()
            self._end()
            self._wake.set()
            # Before anything is awaited: a connection often breaks just after its peer's last word, and cancels this.
            self._deliver(Lost(error), None)
            # A write that gRPC has begun must come to its end: it takes no status beside it.
            await asyncio.wait({writer}, timeout=_LAST_WRITE_SECONDS)
            writer.cancel()
            await asyncio.wait({writer, reader})

    def close(self, refusal: str | None = None) -> None:
        """See `Channel`. A sentence is a refusal, which the peer takes as final; without one it may come back."""
        self._end()
        reason = refusal or Unreachable("the other side closed the stream")
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._link.close, reason)

    def _end(self) -> None:
        with self._room:
            self._is_over = True
            self._waiting.clear()
            self._waiting_bytes = 0
            self._room.notify_all()
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._drained.set)

    def _is_full(self, num_bytes: int) -> bool:
        return self._waiting_bytes > 0 and self._waiting_bytes + num_bytes > MAX_WAITING_BYTES

    async def _read(self) -> None:
        while (data := await self._link.read()) is not None:
            parcel = self._parcels.feed(data)
            if parcel is not None:
                self._deliver(*parcel)

    async def _write(self) -> None:
        while not self._is_over:
            while (data := self._take()) is not None:
                await self._link.write(data)
            self._drained.set()
            self._wake.clear()
            if not self._is_over:
                await self._wake.wait()

    def _take(self) -> bytes | None:
        with self._room:
            if not self._waiting:
                return None
            data = self._waiting.popleft()
            self._waiting_bytes -= len(data)
            self._room.notify_all()
            return data
