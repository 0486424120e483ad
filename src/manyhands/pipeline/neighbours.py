"""A worker's direct streams to other workers: its own small listener, and dials to theirs.

::

    worker 0  listens, shows its invite to the boss ──► boss ──► worker 1  dials: the same mutual TLS as anywhere

Every worker listens on a free port with a key of its own that lives as long as the process. Who dials it holds the
invite that the boss passes on, and is the worker whose key the boss has told before (`expect`): one that speaks under
another's number is refused. A pair whose two dials both fail goes through the boss: that is the caller's business.
Runs its event loop in a thread; knows no model.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from manyhands.clock import Clock
from manyhands.errors import ManyhandsError, ProtocolError, Refused, Unreachable
from manyhands.fleet.channels import Answered, Channel, Dialled, Lost
from manyhands.fleet.loopthread import LoopThread
from manyhands.fleet.parcels import Parcels
from manyhands.pipeline.messages import FromNeighbour, Introduced
from manyhands.wire import Connection, Gate, Invite, Link, Listener, NodeKey, Peer, Role, dial

DIAL_SECONDS = 3.0
"""How long one address may take: a neighbour is near, or goes through the boss."""
MAX_NEIGHBOURS = 1024

Arrived = Callable[[int, Any, Any], None]
"""Called with (member, message or `Lost`, tree), from whichever thread reads."""


class Neighbours:
    """The channels of this worker to others, by their member numbers. Use from any thread after `start`."""

    def __init__(self, arrived: Arrived, clock: Clock, key: NodeKey) -> None:
        self._arrived = arrived
        self._clock = clock
        self._key = key
        self._expected: dict[int, str] = {}
        """The key id of each worker that may dial here, by its number."""
        self._channels: dict[int, Channel] = {}
        self._connections: dict[int, Connection] = {}
        self._lock = threading.Lock()
        self._thread = LoopThread("manyhands-neighbours", self._listen)
        self.invite = ""
        """The line that lets others dial here; holds a secret."""

    def start(self) -> None:
        """Listen. Raises what keeps it from that."""
        self._thread.start()

    def close(self) -> None:
        """End every channel and stop listening."""
        with self._lock:
            channels, self._channels = list(self._channels.values()), {}
            connections, self._connections = list(self._connections.values()), {}
        for channel in channels:
            channel.close()
        for connection in connections:
            connection.close()
        self._thread.close(timeout_seconds=10.0)

    def get(self, member: int) -> Channel | None:
        """The channel to a worker, None where there is none: then the boss passes things on."""
        return self._channels.get(member)

    def expect(self, member: int, key_id: str) -> None:
        """Let the holder of this key in as worker `member`, and nobody else."""
        self._expected[member] = key_id

    def connect(self, me: int, member: int, invites: Sequence[str]) -> None:
        """Dial another worker at the first of these lines that works.

        Raises Unreachable with each address's reason where none does.
        """
        reasons = []
        for line in invites:
            try:
                connection = dial(Invite.parse(line), key=self._key, timeout_seconds=DIAL_SECONDS)
            except ManyhandsError as error:
                reasons.append(str(error))
                continue
            self._take(me, member, connection)
            return
        raise Unreachable(f"no address of worker {member} could be reached: {'; '.join(reasons)[:1000]}")

    def _take(self, me: int, member: int, connection: Connection) -> None:
        def deliver(message: Any, tree: Any) -> None:
            self._hear(member, channel, message, tree)

        channel: Dialled[FromNeighbour] = Dialled(connection.stream(), Parcels(FromNeighbour), deliver)
        with self._lock:
            self._channels[member] = channel
            self._connections[member] = connection
        channel.start()
        channel.send(Introduced(me))

    def _hear(self, member: int, channel: Channel, message: Any, tree: Any) -> None:
        if isinstance(message, Introduced):
            raise ProtocolError("a neighbour said twice who it is")
        if isinstance(message, Lost):
            with self._lock:
                if self._channels.get(member) is not channel:
                    return  # a newer one has taken its place, or all were closed here
                del self._channels[member]
                connection = self._connections.pop(member, None)
            if connection is not None:
                connection.close()
        self._arrived(member, message, tree)

    # ---- the listener's thread ----

    async def _listen(self) -> None:
        with tempfile.TemporaryDirectory(prefix="manyhands-worker-") as folder:
            gate = Gate(Path(folder) / "gate", self._clock)
            gate.open()
            listener = Listener(gate, on_stream=self._serve, on_ask=_no_questions)
            try:
                await listener.start()
                # Long-lived: a run may last for weeks, and a worker that joins late dials then.
                self.invite = str(listener.invite(Role.WORKER, uses=MAX_NEIGHBOURS, hours=24 * 365))
                self._thread.up()
                await self._thread.until_closed()
            finally:
                await listener.stop(0.0)
                gate.close()

    async def _serve(self, peer: Peer, link: Link) -> None:
        """One worker that dialled: its first message says who it is, by the number that the boss gave it."""
        introduction: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def deliver(message: Any, tree: Any) -> None:
            if introduction.done():
                self._hear(introduction.result(), channel, message, tree)
            elif isinstance(message, Introduced):
                if self._expected.get(message.member) != peer.key_id:
                    raise Refused(f"the boss has not said that worker {message.member} comes with this key")
                with self._lock:
                    self._channels[message.member] = channel
                introduction.set_result(message.member)
            elif not isinstance(message, Lost):
                raise ProtocolError("a neighbour spoke before it said who it is")

        channel: Answered[FromNeighbour] = Answered(link, Parcels(FromNeighbour), deliver)
        await channel.serve()


async def _no_questions(peer: Peer, request: bytes) -> bytes:
    raise Refused("a worker answers no questions: ask its boss")
