"""A TCP tunnel by ngrok, through the pyngrok package: no machine of one's own is needed, but an account is.

HTTP tunnels end the encryption at the provider, which a pinned key does not let pass; so it is TCP, which ngrok gives
to accounts with a verified card.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from manyhands.errors import Unreachable, UsageError


class NgrokTunnel:
    """A public port of ngrok's that leads here."""

    name = "ngrok"

    def __init__(self, auth_token: str | None, region: str = "us") -> None:
        self._auth_token = auth_token
        self.region = region
        self._url: str | None = None
        self._config: Any = None

    def open(self, port: int) -> tuple[str, int]:
        """See `tunnel.Tunnel`."""
        if not self._auth_token:
            raise UsageError(
                "ngrok needs your token: give ngrok_auth_token, or set NGROK_AUTH_TOKEN; it is on the page "
                "Your Authtoken of ngrok's dashboard"
            )
        try:
            from pyngrok import conf, exception, ngrok
        except ImportError:
            raise UsageError('tunnels by ngrok need pyngrok: pip install "manyhands[tunnel]"') from None
        self._config = conf.PyngrokConfig(auth_token=self._auth_token, region=self.region)
        try:
            opened = ngrok.connect(str(port), "tcp", pyngrok_config=self._config)
        except (exception.PyngrokError, OSError) as error:
            raise Unreachable(f"ngrok gave no tunnel: {self._without_token(str(error))}") from None
        self._url = str(opened.public_url)
        parts = urlsplit(self._url)
        if parts.hostname is None or parts.port is None:
            raise Unreachable(f"ngrok gave {self._url!r}, which is no tcp://host:port")
        return parts.hostname, parts.port

    def close(self) -> None:
        """See `tunnel.Tunnel`."""
        if self._url is not None:
            from pyngrok import ngrok

            self._url = None
            ngrok.kill(self._config)

    def _without_token(self, text: str) -> str:
        return text.replace(str(self._auth_token), "********")[:500]
