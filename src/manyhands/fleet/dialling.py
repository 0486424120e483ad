"""Where a peer dials, and as whom: the address, the invite and the key, found once and kept for every return."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from manyhands.errors import Refused, Unreachable
from manyhands.settings import load
from manyhands.settings.paths import state_dir
from manyhands.wire.address import is_loopback, parse_address
from manyhands.wire.admission import Role
from manyhands.wire.dialer import Connection, dial
from manyhands.wire.invite import Invite
from manyhands.wire.known import find_invite, read_invite
from manyhands.wire.nodekey import NodeKey

if TYPE_CHECKING:  # the other module loads torch, and a command that dials needs none
    from manyhands.fleet.uplink import Stream

DEFAULT_ADDRESS = ("localhost", 5555)
"""A pool's; the other modes give their own."""


class Streams(Protocol):
    """A connection, as far as who dials knows one."""

    def stream(self) -> Stream:
        """Open the peer's stream."""
        ...

    def close(self) -> None:
        """End it and everything on it."""
        ...


class Dials(Protocol):
    """Whatever reaches the other side."""

    def dial(self) -> Streams:
        """A connection; raises Unreachable or Refused."""
        ...

    def release(self) -> None:
        """The peer leaves for good."""
        ...


class Dialler:
    """Dials one listener, again and again, with one key.

    An `address` other than `default` was given in code, and beats the invite's. `role` counts where there is no
    invite to say it. With `comes_first` a listener of this machine that is not up yet is waited for, though the file
    with its invite is not there either.
    """

    def __init__(
        self,
        address: tuple[str, int] | str,
        invite: str | None,
        *,
        secure: bool,
        default: tuple[str, int] = DEFAULT_ADDRESS,
        role: Role = Role.NODE,
        comes_first: bool = False,
    ) -> None:
        self.address = address
        self.invite = invite
        self.secure = secure
        self._default = default
        self._role = role
        self._comes_first = comes_first
        self._was_up = False
        self._key: NodeKey | None = None
        self._opened: Invite | None = None

    def dial(self) -> Connection:
        """A connection. Unreachable where nobody answers, Refused (exit 4) without an invite or with a wrong one."""
        settings = load()
        timeout = settings.network.timeout
        if isinstance(self.address, str) and self.address.strip().startswith(("mh://", "@")):
            return dial(read_invite(self.address), key=self._claim_key(), timeout_seconds=timeout)
        given = (
            parse_address(self.address, self._default[1]) if isinstance(self.address, str) else self.address
        )
        host, port = given
        if not self.secure:
            return dial((host, port), secure=False, role=self._role, timeout_seconds=timeout)
        secret = settings.invite.get_secret_value() if settings.invite else None
        try:
            invite = find_invite(self.invite, secret, state_dir(), port)
        except Refused:
            if self._opened is None:
                if self._is_early(host, port):
                    raise Unreachable(f"nobody listens at {host}:{port} on this machine yet") from None
                raise
            invite = self._opened  # a listener here takes its file with it when it goes; it may come back
        # An address given in code beats the invite's; the default one is nobody's choice.
        if tuple(self.address) != self._default or (self.invite is None and secret is None):
            invite = invite.with_address(host, port)
        connection = dial(invite, key=self._claim_key(), timeout_seconds=timeout)
        self._opened = invite
        return connection

    def release(self) -> None:
        """Let another process have the key."""
        if self._key is not None:
            self._key.release()
            self._key = None

    def _is_early(self, host: str, port: int) -> bool:
        """Whether this machine's listener is only starting: it listens a moment before its file is there."""
        if not self._comes_first or not is_loopback(host):
            return False
        was_up, self._was_up = self._was_up, _is_up(host, port)
        return not (was_up and self._was_up)

    def _claim_key(self) -> NodeKey:
        if self._key is None:
            self._key = NodeKey.claim(Path(state_dir()) / "keys")
        return self._key


def _is_up(host: str, port: int) -> bool:
    """Whether anybody listens there."""
    try:
        socket.create_connection((host, port), 1.0).close()
    except OSError:
        return False
    return True
