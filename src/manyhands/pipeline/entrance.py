"""Where workers come in: a boss's gate, its listener, and the invite that is left for this user's other processes."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from manyhands.clock import Clock
from manyhands.errors import Refused, UsageError
from manyhands.settings import ensure_state_dir
from manyhands.wire import Gate, Invite, KnownFile, Link, Listener, Peer, Role
from manyhands.wire.address import nearest

GOODBYE_SECONDS: Final = 2.0
"""How long a worker has to hear that it is over."""
_HOURS, _USES = 24.0, 64


@dataclass(frozen=True)
class Entrance:
    """Where it is, and the line that lets a worker in."""

    address: tuple[str, int]
    """Host and port that workers dial."""
    invite: Invite


@contextlib.asynccontextmanager
async def entrance(
    host: str | None,
    port: int,
    given: Invite | None,
    answer: Callable[[Peer, Link], Awaitable[None]],
    clock: Clock,
) -> AsyncIterator[Entrance]:
    """Listen, and serve each stream of a worker with `answer`, until the block is left.

    `given` is a line that workers hold already, None makes one. UsageError where it is another boss's, or the port
    is in use.
    """
    with contextlib.ExitStack() as stack:
        gate = Gate(_folder(port, stack), clock)
        gate.open()
        stack.callback(gate.close)

        async def serve(peer: Peer, link: Link) -> None:
            if peer.role not in (Role.WORKER, Role.NODE, Role.OWNER):
                raise Refused(f"this invite is for a {peer.role}, and a boss takes workers")
            await answer(peer, link)

        listener = Listener(gate, on_stream=serve, on_ask=_no_questions, host=host, port=port)
        await listener.start()
        try:
            bound_host, bound_port = listener.address
            invite = _invite(gate, listener, given)
            known = KnownFile(ensure_state_dir(), bound_port)
            known.write(invite, invite.with_address(nearest(host, bound_host), bound_port))
            stack.callback(known.remove)
            yield Entrance((bound_host, bound_port), invite)
        finally:
            await listener.stop(GOODBYE_SECONDS)


def _folder(port: int, stack: contextlib.ExitStack) -> Path:
    """Where the boss's key and invites lie: kept for a port that was named, so that a boss that is started
    again is the one that its workers know.
    """
    if port:
        return ensure_state_dir() / f"boss-{port}"
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="manyhands-boss-"))) / "gate"


def _invite(gate: Gate, listener: Listener, given: Invite | None) -> Invite:
    """The line for workers: the one that they hold already, or a new one."""
    if given is None:
        return listener.invite(Role.WORKER, uses=_USES, hours=_HOURS)
    if given.pin != gate.identity.pin:
        raise UsageError(
            f"invite: {given.masked} is another boss's (its pin is not this one's key); leave it out to get a new one"
        )
    return given


async def _no_questions(peer: Peer, request: bytes) -> bytes:
    raise Refused("a boss answers workers only; `manyhands status` and the like are for pools")
