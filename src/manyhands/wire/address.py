"""Hosts and ports: what an address means on this machine.

It knows names, numbers and which of them are loopback; it opens no connection and sends no packet.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from urllib.parse import unquote

from manyhands.errors import UsageError

_HOST = re.compile(r"[A-Za-z0-9._:%-]{1,255}")


def parse_address(text: str, default_port: int | None = None) -> tuple[str, int]:
    """`"host:port"` as a pair. The last colon comes before the port, so IPv6 needs no brackets.

    Where `default_port` is given the port may be left out (an IPv6 host then needs its brackets).
    Raises `UsageError` for no host, a host with strange characters, or a port outside 1..65535.
    """
    host, port = _split(text.strip(), default_port)
    host = host.removeprefix("[").removesuffix("]")
    if not host:
        raise UsageError(f"the address {text!r} has no host: write it as host:port")
    return check_host(host), check_port(port)


def check_host(host: str) -> str:
    """`host` itself. Raises `UsageError` where no host is written like that."""
    if not _HOST.fullmatch(host):
        raise UsageError(f"the host {host[:80]!r} is neither a name nor an IP address")
    return host


def check_port(port: str | int) -> int:
    """The port as a number. Raises `UsageError` outside 1..65535."""
    digits = str(port)
    if not re.fullmatch(r"[0-9]{1,5}", digits) or not 1 <= int(digits) <= 65535:
        raise UsageError(f"the port {digits[:20]!r} is not a number between 1 and 65535")
    return int(digits)


def join_address(host: str, port: int) -> str:
    """The pair as a URL writes it: IPv6 hosts in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def resolve(host: str) -> list[str]:
    """All IP addresses of a host name, the preferred one first. Raises `UsageError` for none."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"the host {host!r} has no address: {error}") from error
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def is_loopback(host: str) -> bool:
    """Whether every address of `host` stays on this machine; False for a name without any address."""
    try:
        return all(ipaddress.ip_address(address).is_loopback for address in resolve(host))
    except UsageError:
        return False


def is_own(host: str) -> bool:
    """Whether a host is this machine, as far as can be told without asking a name server."""
    try:
        ip = ipaddress.ip_address("127.0.0.1" if host in ("localhost", socket.gethostname()) else host)
    except ValueError:
        return False
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return ip.is_loopback or str(ip) == outward_address()


def peer_host(peer: str) -> str:
    """The IP address out of what gRPC calls a peer: ``"ipv4:127.0.0.1:40000"``, ``"ipv6:%5B::1%5D:40000"``."""
    host = unquote(peer).partition(":")[2].rpartition(":")[0]
    return host.removeprefix("[").removesuffix("]")


def nearest(bound: str | None, host: str) -> str:
    """Where this machine's own processes dial a listener: loopback if it listens there too, else `host`.

    ``bound`` is what it was told to listen on (None: every interface), ``host`` what others dial.
    """
    everywhere = (None, "0.0.0.0", "::")  # noqa: S104
    return "127.0.0.1" if bound in everywhere or is_loopback(host) else host


def bind_host(host: str) -> str:
    """The one IP address to listen on for `host`: its first IPv4 address, else its first.

    One address, because gRPC calls it a success when it could bind any of several, and would leave
    `127.0.0.1` to a stranger while it listens on `::1`.
    """
    addresses = resolve(host)
    return next((address for address in addresses if ":" not in address), addresses[0])


def all_interfaces() -> str:
    """The address that means every interface: `::` (which takes IPv4 too), or `0.0.0.0` without IPv6."""
    return "::" if socket.has_dualstack_ipv6() else "0.0.0.0"  # noqa: S104  # mutual TLS stands at the door


def outward_address() -> str:
    """The address under which this machine's default route is likely to be seen; `127.0.0.1` without one.

    Connecting a UDP socket asks the routing table and sends nothing (192.0.2.0/24 is reserved, RFC 5737).
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def local_addresses() -> list[str]:
    """Addresses under which others may find this machine, the likeliest first; loopback only if alone."""
    try:
        named = resolve(socket.gethostname())
    except UsageError:
        named = []
    found = dict.fromkeys([outward_address(), *named])
    outside = [address for address in found if not ipaddress.ip_address(address).is_loopback]
    return outside or ["127.0.0.1"]


def _split(text: str, default_port: int | None) -> tuple[str, str | int]:
    host, colon, port = text.rpartition(":")
    if colon and not text.endswith("]"):
        return host, port
    if default_port is None:
        raise UsageError(f"the address {text!r} has no port: write it as host:port")
    return text, default_port
