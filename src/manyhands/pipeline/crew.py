"""The boss's workers: who dialled in, who is gone, and the thread in which their streams are read.

`BossMan.setup_host` makes one and waits until enough workers are here; those beyond what was asked for stand by
as spares. Knows invites and streams, and no model: what the workers say goes to a `Hears`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from manyhands.clock import Clock, SystemClock
from manyhands.errors import Mismatch, ProtocolError, Refused, RunFailed, Unreachable, UsageError
from manyhands.fleet.channels import Answered, Lost
from manyhands.fleet.loopthread import LoopThread
from manyhands.fleet.parcels import Parcels
from manyhands.observe.text import clean_name
from manyhands.observe.waiting import Waiting
from manyhands.pipeline.messages import PROTOCOL, Farewell, FromWorker, Hello, Welcome
from manyhands.release import __version__
from manyhands.settings import ensure_state_dir
from manyhands.wire import Gate, Invite, KnownFile, Link, Listener, Peer, Role
from manyhands.wire.address import join_address, nearest

_T = TypeVar("_T")
_HOURS, _USES = 24.0, 64
_LOOK_SECONDS = 1.0
_GOODBYE_SECONDS = 2.0
"""How long a worker has to hear that it is over."""


@dataclass(eq=False)
class Member:
    """One worker as the boss knows it."""

    number: int
    """Counted from 0 in the order of arrival; never used twice."""
    key_id: str
    """Of the key that its stream was opened with; other workers know it by this."""
    hello: Hello
    channel: Answered[FromWorker]
    is_alive: bool = True

    @property
    def title(self) -> str:
        """How messages to people name it."""
        return f"worker {self.number} ({clean_name(self.hello.name)}, {clean_name(self.hello.device)})"

    @property
    def dials(self) -> list[str]:
        """Lines at which other workers may reach it, the likeliest first: its own, then as the boss sees it."""
        invite = Invite.parse(self.hello.invite)
        seen = _host_of(self.channel.peer_address)
        hosts = [seen, *self.hello.addresses] if seen is not None else [*self.hello.addresses]
        return [str(invite.with_address(host, invite.port)) for host in dict.fromkeys(hosts)]


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

        Unreachable when `timeout_seconds` are over.
        """
        waiting = Waiting(self._clock)
        with self._changed:
            while len(self.alive) < num_workers:
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
        with contextlib.ExitStack() as stack:
            gate = Gate(self._folder(stack), self._clock)
            gate.open()
            stack.callback(gate.close)
            listener = Listener(
                gate, on_stream=self._answer, on_ask=_no_questions, host=self._host, port=self._port
            )
            await listener.start()
            try:
                self._address = listener.address
                self._invite = _invite(gate, listener, self._invite)
                known = KnownFile(ensure_state_dir(), self._address[1])
                mine = nearest(self._host, self._address[0])
                known.write(self._invite, self._invite.with_address(mine, self._address[1]))
                stack.callback(known.remove)
                self._thread.up()
                await self._thread.until_closed()
                await self._say_farewell()
            finally:
                await listener.stop(_GOODBYE_SECONDS)

    async def _say_farewell(self) -> None:
        for member in self.alive:
            with contextlib.suppress(Unreachable):
                member.channel.send(Farewell())
        for member in self.alive:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(member.channel.flush(), _GOODBYE_SECONDS)

    def _folder(self, stack: contextlib.ExitStack) -> Path:
        """Where the boss's key and invites lie: kept for a port that was named, so that a boss that is started
        again is the one that its workers know.
        """
        if self._port:
            return ensure_state_dir() / f"boss-{self._port}"
        return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="manyhands-boss-"))) / "gate"

    async def _answer(self, peer: Peer, link: Link) -> None:
        """One worker's stream, from its first message to its end."""
        if peer.role not in (Role.WORKER, Role.NODE, Role.OWNER):
            raise Refused(f"this invite is for a {peer.role}, and a boss takes workers")
        member: Member | None = None

        def deliver(message: Any, tree: Any) -> None:
            nonlocal member
            if isinstance(message, Lost):
                if member is not None:
                    self._lose(member, str(message.error))
            elif member is None:
                member = self._take(message, peer.key_id, channel)
            elif isinstance(message, Hello):
                raise ProtocolError("a worker said hello twice")
            elif self._hears is None:
                raise ProtocolError("a worker spoke before it was given any work")
            else:
                self._hears.heard(member, message, tree)

        channel: Answered[FromWorker] = Answered(link, Parcels(FromWorker), deliver)
        await channel.serve()

    def _take(self, hello: Any, key_id: str, channel: Answered[FromWorker]) -> Member:
        if not isinstance(hello, Hello):
            raise ProtocolError("a worker spoke before it said hello")
        if hello.protocol != PROTOCOL:
            raise Mismatch(
                f"this boss speaks pipeline protocol {PROTOCOL}, manyhands {__version__}, and this worker "
                f"{hello.protocol} (manyhands {hello.release}): install the same release on both"
            )
        Invite.parse(hello.invite)
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


def _invite(gate: Gate, listener: Listener, given: Invite | None) -> Invite:
    """The line for workers: the one that they hold already, or a new one."""
    if given is None:
        return listener.invite(Role.WORKER, uses=_USES, hours=_HOURS)
    if given.pin != gate.identity.pin:
        raise UsageError(
            f"invite: {given.masked} is another boss's (its pin is not this one's key); leave it out to get a new one"
        )
    return given


def _host_of(address: str) -> str | None:
    """The host of `"ipv4:10.0.0.2:4711"` or `"ipv6:%5B::1%5D:4711"`, as gRPC writes a peer; None of others."""
    kind, _, rest = address.partition(":")
    host = rest.rpartition(":")[0].replace("%5B", "").replace("%5D", "").strip("[]")
    return host or None if kind in ("ipv4", "ipv6") else None


async def _no_questions(peer: Peer, request: bytes) -> bytes:
    raise Refused("a boss answers workers only; `manyhands status` and the like are for pools")
