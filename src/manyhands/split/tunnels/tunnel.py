"""What every tunnel can do."""

from __future__ import annotations

from typing import Protocol


class Tunnel(Protocol):
    """Forwards a public address to a port of this machine while it is open."""

    name: str
    """What it is called in messages: ``ssh`` or ``ngrok``."""

    def open(self, port: int) -> tuple[str, int]:
        """Forward to ``127.0.0.1:port``; the host and port that others dial.

        Raises:
            UsageError: something that it needs is missing: a package, a token, a program.
            Unreachable: the other end did not answer, or would not forward.

        """
        ...

    def close(self) -> None:
        """End the forwarding; safe to call twice."""
        ...
