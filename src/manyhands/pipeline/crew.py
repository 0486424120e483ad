"""The boss's workers: who dialled in, who is gone, and the thread in which their streams are read.

`BossMan.setup_host` makes one and waits until enough workers are here; those beyond what was asked for stand by
as spares. Knows streams, and no model: what the workers say goes to a `Hears`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Protocol, TypeVar

from manyhands.clock import Clock, SystemClock
from manyhands.errors import ProtocolError, RunFailed, Unreachable
from manyhands.fleet.channels import Answered, Lost
from manyhands.fleet.loopthread import LoopThread
from manyhands.fleet.parcels import Parcels
from manyhands.observe.waiting import Waiting
from manyhands.pipeline.entrance import GOODBYE_SECONDS, entrance
from manyhands.pipeline.members import Member, greeting
from manyhands.pipeline.messages import Farewell, FromWorker, Hello, Welcome
from manyhands.wire import Invite, Link, Peer
from manyhands.wire.address import join_address

_T = TypeVar("_T")
_LOOK_SECONDS = 1.0


class Hears(Protocol):
    """Who acts on what the workers do. Called in the crew's event loop; must not wait."""

    def joined(self, member: Member) -> None:
        """A worker is here."""
        ...

    def heard(self, member: Member, message: FromWorker, tree: Any) -> None:
        """It said something."""
        ...

    def lost(self, member: Member, reason: str) -> None:
        """Its stream is over."""
        ...


class Crew:
    """The workers of one boss, from `open` to `close`."""

    def __init__(
        self,
        num_workers: int,
        host: str | None,
        port: int,
        invite: Invite | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.num_workers = num_workers
        """How many get stages; those beyond stand by."""
        self.members: list[Member] = []
        self._host = host
        self._port = port
        self._clock = clock or SystemClock()
        self._hears: Hears | None = None
        self._invite = invite
        self._address = (host or "", port)
        self._changed = threading.Condition()
        self._thread = LoopThread("manyhands-boss", self._serve)
        self._at_close: list[Callable[[], None]] = []
        self.numbers = itertools.count(1)
        """For placements and commands: never used twice, whichever boss of this crew asks."""
        self.turn = asyncio.Lock()
        """Who holds it has the workers to itself: one command at a time, whichever boss of this crew asks."""
        self.linked: set[frozenset[int]] = set()
        """The pairs of members with a direct stream."""
        self.unreachable: set[tuple[int, int]] = set()
        """Who could not dial whom: not tried again, since every address takes its seconds at every placement."""

    # ---- life ----

    def open(self) -> None:
        """Listen and leave the invite for this user's other processes. UsageError for a port in use."""
        self._thread.start()

    def close(self) -> None:
        """Let every worker go, and stop listening. Twice is fine."""
        self._thread.close(timeout_seconds=10.0)
        ends, self._at_close = self._at_close, []
        for end in ends:
            end()

    def wait(self, num_workers: int, timeout_seconds: float | None) -> None:
        """Block until so many workers are here, saying every half minute for how many more.

        Unreachable when `timeout_seconds` are over, RunFailed where the crew is closed meanwhile.
        """
        waiting = Waiting(self._clock)
        with self._changed:
            while len(self.alive) < num_workers:
                self._running()
                missing = num_workers - len(self.alive)
                waiting.say(
                    f"waiting for {missing} of {num_workers} workers: run `manyhands worker mh://...`, the line above, "
                    "on each machine"
                )
                if timeout_seconds is not None and waiting.seconds >= timeout_seconds:
                    raise Unreachable(
                        f"{len(self.alive)} of {num_workers} workers came within {timeout_seconds:g} s: run "
                        f"`manyhands worker` with the printed line on {missing} more, and see that they can reach "
                        f"{join_address(*self._address)}"
                    )
                self._changed.wait(_LOOK_SECONDS)
            waiting.over()

    # ---- views ----

    @property
    def invite(self) -> str:
        """The line for workers, ``mh://…``; it holds a secret."""
        return str(self._invite)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that workers dial."""
        return self._address

    @property
    def alive(self) -> list[Member]:
        """The workers that are here, in the order of their arrival."""
        return [member for member in list(self.members) if member.is_alive]

    def __len__(self) -> int:
        """How many workers are here."""
        return len(self.alive)

    def __iter__(self) -> Iterator[Member]:
        return iter(self.alive)

    # ---- the event loop, from outside ----

    def call(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine in the crew's loop, and wait for it in this thread; an interrupt here ends it there."""
        future = asyncio.run_coroutine_threadsafe(work, self._running())
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    async def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine in the crew's loop, and await it in the caller's."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._running()))

    def attend(self, hears: Hears) -> bool:
        """Who hears the workers from now on; whether it did so before."""
        before, self._hears = self._hears, hears
        return before is hears

    def at_close(self, end: Callable[[], None]) -> None:
        """Call `end` once the workers were let go."""
        self._at_close.append(end)

    def _running(self) -> asyncio.AbstractEventLoop:
        loop = self._thread.running
        if loop is None:
            raise RunFailed("this boss has let its workers go: call BossMan.setup_host again")
        return loop

    # ---- the event loop, inside ----

    async def _serve(self) -> None:
        async with entrance(self._host, self._port, self._invite, self._answer, self._clock) as opened:
            self._address, self._invite = opened.address, opened.invite
            self._thread.up()
            await self._thread.until_closed()
            await self._say_farewell()

    async def _say_farewell(self) -> None:
        for member in self.alive:
            with contextlib.suppress(Unreachable):
                member.channel.send(Farewell())
        for member in self.alive:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(member.channel.flush(), GOODBYE_SECONDS)

    async def _answer(self, peer: Peer, link: Link) -> None:
        """One worker's stream, from its first message to its end."""
        member: Member | None = None

        def deliver(message: Any, tree: Any) -> None:
            nonlocal member
            if isinstance(message, Lost):
                if member is not None:
                    self._lose(member, str(message.error))
            elif member is None:
                member = self._take(greeting(message), peer.key_id, channel)
            elif isinstance(message, Hello):
                raise ProtocolError("a worker said hello twice")
            elif self._hears is None:
                raise ProtocolError("a worker spoke before it was given any work")
            else:
                self._hears.heard(member, message, tree)

        channel: Answered[FromWorker] = Answered(link, Parcels(FromWorker), deliver)
        await channel.serve()

    def _take(self, hello: Hello, key_id: str, channel: Answered[FromWorker]) -> Member:
        member = Member(len(self.members), key_id, hello, channel)
        channel.send(Welcome(member.number))
        with self._changed:
            self.members.append(member)
            self._changed.notify_all()
        if self._hears is not None:
            self._hears.joined(member)
        return member

    def _lose(self, member: Member, reason: str) -> None:
        with self._changed:
            member.is_alive = False
            self._changed.notify_all()
        if self._hears is not None:
            self._hears.lost(member, reason)
