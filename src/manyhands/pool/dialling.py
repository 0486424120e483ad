"""Where a node dials, and as whom: the address, the invite and the key, found once and kept for every return."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from manyhands.settings import load
from manyhands.settings.paths import state_dir
from manyhands.wire.address import parse_address
from manyhands.wire.dialer import Connection, dial
from manyhands.wire.known import find_invite, read_invite
from manyhands.wire.nodekey import NodeKey

if TYPE_CHECKING:  # the other module loads torch, and a command that dials needs none
    from manyhands.fleet.uplink import Stream

DEFAULT_ADDRESS = ("localhost", 5555)


class Streams(Protocol):
    """A connection, as far as a node knows one."""

    def stream(self) -> Stream:
        """Open the node's stream."""
        ...

    def close(self) -> None:
        """End it and everything on it."""
        ...


class Dials(Protocol):
    """Whatever reaches a node's coordinator."""

    def dial(self) -> Streams:
        """A connection; raises Unreachable or Refused."""
        ...

    def release(self) -> None:
        """The node leaves for good."""
        ...


class Dialler:
    """Dials one coordinator, again and again, with one key."""

    def __init__(self, address: tuple[str, int] | str, invite: str | None, *, secure: bool) -> None:
        self.address = address
        self.invite = invite
        self.secure = secure
        self._key: NodeKey | None = None

    def dial(self) -> Connection:
        """A connection. Unreachable where nobody answers, Refused (exit 4) without an invite or with a wrong one."""
        settings = load()
        timeout = settings.network.timeout
        if isinstance(self.address, str) and self.address.strip().startswith(("mh://", "@")):
            return dial(read_invite(self.address), key=self._claim_key(), timeout_seconds=timeout)
        given = (
            parse_address(self.address, DEFAULT_ADDRESS[1]) if isinstance(self.address, str) else self.address
        )
        host, port = given
        if not self.secure:
            return dial((host, port), secure=False, timeout_seconds=timeout)
        secret = settings.invite.get_secret_value() if settings.invite else None
        invite = find_invite(self.invite, secret, state_dir(), port)
        # An address given in code beats the invite's; the default one is nobody's choice.
        if tuple(self.address) != DEFAULT_ADDRESS or (self.invite is None and secret is None):
            invite = invite.with_address(host, port)
        return dial(invite, key=self._claim_key(), timeout_seconds=timeout)

    def release(self) -> None:
        """Let another process have the key."""
        if self._key is not None:
            self._key.release()
            self._key = None

    def _claim_key(self) -> NodeKey:
        if self._key is None:
            self._key = NodeKey.claim(Path(state_dir()) / "keys")
        return self._key
