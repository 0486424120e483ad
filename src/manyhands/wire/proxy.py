"""The way to a coordinator: directly, or through the HTTP proxy that the user's environment names.

gRPC and Python each have their own idea of a proxy; here one decision serves both, and loopback never uses
one. It knows hosts and sockets, no TLS.
"""

from __future__ import annotations

import base64
import socket
from dataclasses import dataclass, field
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from manyhands.errors import Unreachable
from manyhands.wire.address import is_loopback, join_address
from manyhands.wire.limits import Options

_MOST_REPLY_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class Route:
    """How to reach `host:port`; `proxy` may hold a password, so `repr()` leaves it out."""

    host: str
    port: int
    proxy: str | None = field(default=None, repr=False)

    @property
    def options(self) -> Options:
        """The same way, for a gRPC channel."""
        return [("grpc.http_proxy", self.proxy)] if self.proxy else [("grpc.enable_http_proxy", 0)]

    def connect(self, timeout_seconds: float) -> socket.socket:
        """A TCP connection whose other end is `host:port`; each wait on it is bounded by the timeout.

        Raises `OSError` as sockets do, `Unreachable` where the proxy says no.
        """
        if self.proxy is None:
            return socket.create_connection((self.host, self.port), timeout_seconds)
        proxy = urlsplit(self.proxy)
        connection = socket.create_connection((proxy.hostname or "", proxy.port or 80), timeout_seconds)
        try:
            connection.sendall(_connect_request(join_address(self.host, self.port), proxy))
            _check_reply(connection, f"{proxy.hostname}:{proxy.port or 80}")
        except BaseException:
            connection.close()
            raise
        return connection


def route_to(host: str, port: int) -> Route:
    """The way to an address: `https_proxy` or `http_proxy`, unless `no_proxy` or loopback says otherwise."""
    if is_loopback(host) or proxy_bypass(host):
        return Route(host, port)
    proxies = getproxies()
    proxy = proxies.get("https") or proxies.get("http")
    if not proxy or urlsplit(proxy).scheme != "http":  # gRPC knows no other kind
        return Route(host, port)
    return Route(host, port, proxy)


def _connect_request(target: str, proxy: SplitResult) -> bytes:
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if proxy.username is not None:
        pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
        lines.append(f"Proxy-Authorization: Basic {base64.b64encode(pair.encode()).decode()}")
    return "\r\n".join([*lines, "", ""]).encode()


def _check_reply(connection: socket.socket, where: str) -> None:
    reply = b""
    while b"\r\n\r\n" not in reply and len(reply) < _MOST_REPLY_BYTES:
        # One byte at a time: what follows the blank line belongs to the tunnel.
        byte = connection.recv(1)
        if not byte:
            break
        reply += byte
    words = reply.split(b"\r\n")[0].split()
    if len(words) < 2 or words[1] != b"200":
        said = b" ".join(words[1:]).decode(errors="replace")[:80] or "nothing"
        raise Unreachable(f"the HTTP proxy at {where} did not open a way to the coordinator: it said {said}")
