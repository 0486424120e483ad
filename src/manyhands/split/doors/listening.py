"""The door of the side that is dialled."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from manyhands.clock import Clock
from manyhands.errors import Refused, UsageError
from manyhands.fleet.channels import Answered
from manyhands.fleet.loopthread import LoopThread
from manyhands.settings import checks
from manyhands.settings.paths import ensure_state_dir
from manyhands.split.doors.guests import NewGuest, OnFailure
from manyhands.wire import Gate, Invite, KnownFile, Link, Listener, Peer, Role
from manyhands.wire.address import nearest


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
