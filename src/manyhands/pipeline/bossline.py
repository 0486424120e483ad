"""Where a worker dials, and as whom: invite, address and key, found once and kept for every return."""

from __future__ import annotations

from manyhands.errors import Refused
from manyhands.settings import load, state_dir
from manyhands.wire import Connection, Invite, NodeKey, dial, find_invite

DEFAULT_PORT = 1024


class BossLine:
    """Dials one boss, again and again, with one key.

    `given` is an ``mh://`` line or ``@file``; None: MANYHANDS_INVITE, else what a boss on this machine left for
    its user. MODEL_HOST and MODEL_PORT, where set, beat the invite's address.
    """

    def __init__(self, given: str | None) -> None:
        self._given = given
        self._key: NodeKey | None = None

    def invite(self) -> Invite:
        """The line with the address to dial. UsageError for a damaged one, Refused where there is none."""
        settings = load()
        secret = settings.invite.get_secret_value() if settings.invite else None
        port = DEFAULT_PORT if settings.model.port is None else settings.model.port
        try:
            invite = find_invite(self._given, secret, state_dir(), port)
        except Refused:
            raise Refused(
                "no invite: none was given, MANYHANDS_INVITE is not set, and no boss of yours runs here on "
                f"port {port}; paste the line that the boss prints when it starts, `manyhands worker mh://...`"
            ) from None
        host = settings.model.host or invite.host
        return invite.with_address(host, settings.model.port or invite.port)

    def key(self) -> NodeKey:
        """Who this worker is, for its boss and for other workers: the same key at every return."""
        if self._key is None:
            self._key = NodeKey.claim(state_dir() / "keys")
        return self._key

    def dial(self) -> Connection:
        """A connection. Unreachable where nobody answers, Refused where the boss says no."""
        return dial(self.invite(), key=self.key(), timeout_seconds=load().network.timeout)

    def release(self) -> None:
        """Let another process have the key."""
        if self._key is not None:
            self._key.release()
            self._key = None
