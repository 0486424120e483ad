"""The nodes' streams, from hello to goodbye: who is let in, who has left, and the last word to everyone.

What a node says in between is the run's; see `Run`. Everything is on one event loop.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from manyhands.clock import Clock
from manyhands.errors import ProtocolError, Refused
from manyhands.fleet import messages as m
from manyhands.fleet.session import Session
from manyhands.pool.handshake import Door
from manyhands.pool.member import Member
from manyhands.wire.admission import Peer, Role
from manyhands.wire.link import Link
from manyhands.wire.transfer import Body, Place

MOST_REFUSED = 1000
"""Messages of one node in a row, without a lease in between; an honest one has a few for a lease that is late."""
_DISMISS_SECONDS = 3.0


class Host(Protocol):
    """Whose visitors they are."""

    members: dict[str, Member]

    def joined(self, member: Member) -> None:
        """A node was let in; it stands in `members`."""
        ...

    def hear(self, member: Member, message: m.FromNode, body: Body | None) -> bool:
        """One message of it; True when it says goodbye."""
        ...

    def place_for(self, key: str, message: m.Delivered) -> Place | None:
        """Where to put a sum that it announces, as it comes; None: it is kept in pieces until it is heard of."""
        ...

    def left(self, member: Member) -> None:
        """Its stream has ended; it stands in `members` no more."""
        ...


class Visits:
    """All streams of one incarnation."""

    def __init__(self, host: Host, door: Door, max_body_bytes: int, clock: Clock) -> None:
        self._host = host
        self._door = door
        self._max_body_bytes = max_body_bytes
        self._clock = clock
        self._sessions: set[Session] = set()
        self._ending: m.Finished | None = None

    async def serve(self, peer: Peer, link: Link) -> None:
        """One node's stream."""
        if peer.role not in (Role.NODE, Role.OWNER):
            raise Refused(
                f"an invite for the role {peer.role} does not let compute: `manyhands invite` prints one "
                "that does"
            )
        session = Session(
            link,
            max_body_bytes=self._max_body_bytes,
            place_for=lambda message: self._host.place_for(peer.key_id, message),
        )
        if self._ending is not None:
            session.post(self._ending)
            session.finish()
        self._sessions.add(session)
        writer = asyncio.create_task(session.write_all())
        reader = asyncio.create_task(self._read(peer, session))
        try:
            await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_COMPLETED)
            if reader.done():
                reader.result()
            else:
                writer.result()
        finally:
            reader.cancel()
            session.finish()
            self._sessions.discard(session)
            self._leave(peer.key_id, session)
            await asyncio.wait({writer, reader}, timeout=1.0)
            writer.cancel()
            for task in (writer, reader):
                if task.done() and not task.cancelled():
                    task.exception()  # looked at: what is told to the peer was raised above

    async def turn_away(self, message: m.Finished, seconds: float, stop: asyncio.Event) -> None:
        """For a while, or until `stop` is set, tell every node that comes how it ended."""
        self._ending = message
        deadline = self._clock.monotonic() + seconds
        while self._clock.monotonic() < deadline and not stop.is_set():
            await asyncio.sleep(0.05)

    async def dismiss(self, message: m.Finished) -> None:
        """Tell every node how it ended, and wait a moment for the words to go out."""
        self._ending = message
        for session in list(self._sessions):
            session.post(message)
            session.finish()
        deadline = self._clock.monotonic() + _DISMISS_SECONDS
        while self._sessions and self._clock.monotonic() < deadline:
            await asyncio.sleep(0.01)

    async def _read(self, peer: Peer, session: Session) -> None:
        said = session.messages()
        member = await self._door.admit(peer, session, said)
        self._host.members[peer.key_id] = member
        self._host.joined(member)
        async for message, body in said:
            if self._host.hear(member, message, body):
                return
            if member.refused > MOST_REFUSED:  # each costs a row of the journal, a line and an answer
                raise ProtocolError(
                    f"{member.refused} messages of this node were refused since its last lease: it runs other "
                    "software or another version"
                )

    def _leave(self, key: str, session: Session) -> None:
        member = self._host.members.get(key)
        if member is not None and member.session is session:
            del self._host.members[key]
            self._host.left(member)
