"""One worker as its boss knows it, and whom a boss takes at all. Knows no model and no event loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from manyhands.errors import Mismatch, ProtocolError
from manyhands.fleet.channels import Answered
from manyhands.observe.text import clean_name
from manyhands.pipeline.messages import PROTOCOL, FromWorker, Hello
from manyhands.release import __version__
from manyhands.wire import Invite


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
        """Lines at which other workers may reach it, the likeliest first: as the boss sees it, then its own."""
        invite = Invite.parse(self.hello.invite)
        seen = _host_of(self.channel.peer_address)
        hosts = [seen, *self.hello.addresses] if seen is not None else [*self.hello.addresses]
        return [str(invite.with_address(host, invite.port)) for host in dict.fromkeys(hosts)]


def greeting(message: Any) -> Hello:
    """A worker's first word. ProtocolError where it is none, Mismatch where its release speaks otherwise."""
    if not isinstance(message, Hello):
        raise ProtocolError("a worker spoke before it said hello")
    if message.protocol != PROTOCOL:
        raise Mismatch(
            f"this boss speaks pipeline protocol {PROTOCOL}, manyhands {__version__}, and this worker "
            f"{message.protocol} (manyhands {message.release}): install the same release on both"
        )
    Invite.parse(message.invite)
    return message


def _host_of(address: str) -> str | None:
    """The host of `"ipv4:10.0.0.2:4711"` or `"ipv6:%5B::1%5D:4711"`, as gRPC writes a peer; None of others."""
    kind, _, rest = address.partition(":")
    host = rest.rpartition(":")[0].replace("%5B", "").replace("%5D", "").strip("[]")
    return host or None if kind in ("ipv4", "ipv6") else None
