"""How the two sides of a job meet: one listens, the other dials, and which is which is free.

::

    ListeningDoor   a stream that comes in ─► guest()   gate, invite, the line to paste
    DiallingDoor    a stream that we open  ─► guest()   again and again, until the guest is done

A *guest* is this side's end of one stream: it is told of its channel, and then of each message. Doors know no
message's meaning. Each works on a thread of its own, and never raises there: what nobody can mend by waiting goes to
`on_failure`.
"""

from __future__ import annotations

import os
import random
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from manyhands.clock import Clock
from manyhands.errors import ManyhandsError, Refused, Unreachable, UsageError
from manyhands.fleet.channels import Answered, Channel, Dialled, Lost
from manyhands.fleet.dialling import Dialler
from manyhands.fleet.loopthread import LoopThread
from manyhands.fleet.parcels import Parcels
from manyhands.settings import checks
from manyhands.settings.paths import ensure_state_dir
from manyhands.wire import Gate, Invite, KnownFile, Link, Listener, Peer, Role, delays
from manyhands.wire.address import nearest


class Guest(Protocol):
    """Our end of one stream."""

    parcels: Parcels[Any]

    def opened(self, channel: Channel) -> None:
        """The stream is there; nothing was received yet."""
        ...

    def deliver(self, message: Any, tree: Any) -> None:
        """A message came, or `Lost` at the end; on the thread that reads. May raise what ends the stream."""
        ...

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to come back for."""
        ...


NewGuest = Callable[[], Guest]
OnFailure = Callable[[ManyhandsError], None]


class Door(Protocol):
    """Where streams come from."""

    def start(self, new_guest: NewGuest, on_failure: OnFailure) -> None:
        """Let streams in from now on. UsageError for what cannot be listened on."""
        ...

    def whom(self) -> str:
        """A sentence for whoever waits: for whom, and what to run there."""
        ...

    def close(self) -> None:
        """End every stream, and this door."""
        ...


class ListeningDoor:
    """Waits for those who hold an invite for `role`; they are let in one stream a key."""

    def __init__(
        self,
        role: Role,
        *,
        host: str | None,
        port: int,
        secure: bool,
        clock: Clock,
        advice: Callable[[str, int], str],
        advertise: str | None = None,
    ) -> None:
        self._role = role
        self._host = host
        self._port = port
        self._secure = secure
        self._clock = clock
        self._advice = advice
        self._advertise = advertise
        self._listener: Listener | None = None
        self._new_guest: NewGuest | None = None
        self._thread = LoopThread("manyhands-door", self._listen)
        self.invite: Invite | None = None
        """What the other side dials with; None where nothing is encrypted, on loopback."""

    def start(self, new_guest: NewGuest, on_failure: OnFailure) -> None:
        """Listen, and tell this user's other processes the invite."""
        checks.whole("port", self._port, 0, 65535)
        self._new_guest = new_guest
        self._thread.start()

    @property
    def is_up(self) -> bool:
        """Whether it listens, and its invite is known."""
        return self._thread.is_up

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that others dial."""
        if self._listener is None:
            raise UsageError("there is no address before it listens")
        return self._listener.address

    def whom(self) -> str:
        """See `Door`."""
        return self._advice(*self.address)

    def close(self) -> None:
        """See `Door`."""
        self._thread.close()

    # ---- the door's thread ----

    async def _listen(self) -> None:
        with _gate_folder(self._role, self._port) as folder:
            gate = Gate(folder, self._clock)
            gate.open()
            listener = Listener(
                gate,
                on_stream=self._serve,
                on_ask=_no_questions,
                host=self._host,
                port=self._port,
                secure=self._secure,
                advertise=self._advertise,
            )
            known: KnownFile | None = None
            try:
                await listener.start()
                known = self._announce(listener)
                self._listener = listener  # who sees an address may dial it, by the file of its invite
                self._thread.up()
                await self._thread.until_closed()
            finally:
                await listener.stop(0.0)
                if known is not None:
                    known.remove()
                gate.close()

    def _announce(self, listener: Listener) -> KnownFile | None:
        if not self._secure:
            return None
        host, port = listener.address
        self.invite = listener.invite(self._role)
        mine = nearest(self._host, host)
        known = KnownFile(ensure_state_dir(), port)
        known.write(
            self.invite.with_address(mine, port),
            listener.invite(Role.OWNER, uses=100_000).with_address(mine, port),
        )
        return known

    async def _serve(self, peer: Peer, link: Link) -> None:
        if peer.role not in (self._role, Role.OWNER):
            raise Refused(
                f"this is for a {self._role}, and the invite is for a {peer.role}: ask for another line"
            )
        assert self._new_guest is not None
        guest = self._new_guest()
        channel: Answered[Any] = Answered(link, guest.parcels, guest.deliver)
        guest.opened(channel)
        await channel.serve()


class DiallingDoor:
    """Dials one address until its guest is done; nobody there is a reason to wait."""

    def __init__(
        self,
        dialler: Dialler,
        where: str,
        clock: Clock,
        patience_seconds: float,
        attempts: int | None = None,
    ) -> None:
        self._dialler = dialler
        self._where = where
        self._clock = clock
        self._patience_seconds = patience_seconds
        self._attempts = attempts
        self._trouble = "it was not dialled yet"
        self._closing = threading.Event()
        self._gone = threading.Event()
        self._channel: Dialled[Any] | None = None
        self._thread: threading.Thread | None = None

    def start(self, new_guest: NewGuest, on_failure: OnFailure) -> None:
        """Begin to dial."""
        self._thread = threading.Thread(
            target=self._main, args=(new_guest, on_failure), name="manyhands-door", daemon=True
        )
        self._thread.start()

    def whom(self) -> str:
        """See `Door`."""
        return f"{self._where} ({self._trouble})"

    def close(self) -> None:
        """See `Door`."""
        self._closing.set()
        self._gone.set()
        channel = self._channel
        if channel is not None:
            channel.close()
        if self._thread is not None and threading.current_thread() is not self._thread:
            self._thread.join()

    # ---- the door's thread ----

    def _main(self, new_guest: NewGuest, on_failure: OnFailure) -> None:
        try:
            self._dial_on(new_guest)
        except ManyhandsError as error:
            if not self._closing.is_set():
                on_failure(error)
        finally:
            self._dialler.release()

    def _dial_on(self, new_guest: NewGuest) -> None:
        waits, since, failed = delays(random.Random(os.getpid())), self._clock.monotonic(), 0
        while not self._closing.is_set():
            guest = new_guest()
            try:
                self._attend(guest)
                waits, since, failed = delays(random.Random(os.getpid())), self._clock.monotonic(), 0
            except Unreachable as error:
                self._trouble = str(error)
                failed += 1
                is_late = self._clock.monotonic() - since > self._patience_seconds
                if is_late or (self._attempts is not None and failed >= self._attempts):
                    raise
            if guest.is_done:
                return
            self._closing.wait(next(waits))

    def _attend(self, guest: Guest) -> None:
        """One connection, from its dial to its end."""
        connection = self._dialler.dial()
        try:
            self._gone.clear()

            def deliver(message: Any, tree: Any) -> None:
                guest.deliver(message, tree)
                if isinstance(message, Lost):
                    self._trouble = str(message.error)
                    self._gone.set()

            channel: Dialled[Any] = Dialled(connection.stream(), guest.parcels, deliver)
            self._channel = channel
            guest.opened(channel)
            channel.start()
            if self._closing.is_set():
                channel.close()
            self._gone.wait()
            channel.close()
        finally:
            self._channel = None
            connection.close()


@contextmanager
def _gate_folder(role: Role, port: int) -> Iterator[Path]:
    """Of a port that was chosen, a folder that outlives the process, so that its invites still work then."""
    if port:
        yield ensure_state_dir() / "gates" / f"{role}-{port}"
        return
    with tempfile.TemporaryDirectory(prefix="manyhands-") as folder:
        yield Path(folder) / "gate"


async def _no_questions(peer: Peer, request: bytes) -> bytes:
    raise Refused("there is nothing to ask here: this port is for streams of batches")
