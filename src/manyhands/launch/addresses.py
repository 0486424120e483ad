"""Under which IP address, and through which interface, other machines find this one.

Names are never advertised: what `getfqdn` says is often not what others can resolve.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from pathlib import Path

_SIOCGIFADDR = 0x8915
"""Linux, netdevice(7): the IPv4 address of an interface."""


def source_address(target: str, port: int = 9) -> str | None:
    """The address of this machine from which `target` is reached; None where there is no route.

    Connecting a UDP socket asks the routing table and sends nothing.
    """
    for family, kind, protocol, _, place in _resolve(target, port):
        with socket.socket(family, kind, protocol) as probe:
            try:
                probe.connect(place)
            except OSError:
                continue
            return str(probe.getsockname()[0])
    return None


def _resolve(target: str, port: int) -> Sequence[tuple[int, int, int, str, tuple[object, ...]]]:
    try:
        return socket.getaddrinfo(target, port, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError):
        return ()


def answers(address: str, port: int, timeout_seconds: float) -> str | None:
    """None where something listens there, else why not, in the operating system's words."""
    try:
        with socket.create_connection((address, port), timeout_seconds):
            return None
    except (OSError, UnicodeError) as error:
        return getattr(error, "strerror", None) or str(error)


def interface_of(address: str) -> str | None:
    """The name of the interface that has `address`, for Gloo and NCCL; None where it cannot be told.

    They would look up this machine's own name otherwise, which often means loopback.
    """
    if ":" in address:
        return _interface_of_ipv6(address.partition("%")[0])
    wanted = socket.inet_aton(address)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        return next((name for _, name in socket.if_nameindex() if _ipv4_of(name, probe) == wanted), None)


def _ipv4_of(interface: str, probe: socket.socket) -> bytes | None:
    try:
        import fcntl

        request = struct.pack("256s", interface.encode()[:15])
        return fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)[20:24]
    except (ImportError, OSError):
        return None


def _interface_of_ipv6(address: str) -> str | None:
    packed = socket.inet_pton(socket.AF_INET6, address).hex()
    try:
        lines = Path("/proc/net/if_inet6").read_text().splitlines()
    except OSError:
        return None
    return next((words[5] for words in map(str.split, lines) if words[0] == packed), None)
