"""Addresses, the port of a coordinator, proxies: what this machine's network lets through. Sends no packet.

Whether others get in can only be seen from outside; what can be seen here is what will keep them out.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit
from urllib.request import getproxies

from manyhands.diagnosis.finding import Figures, Finding, ok, warn
from manyhands.wire.address import all_interfaces, join_address, local_addresses
from manyhands.wire.ports import port_holder

_SHARED = ipaddress.ip_network(
    "100.64.0.0/10"
)  # RFC 6598: a provider's NAT; some overlay networks use it too
_UNIQUE_LOCAL = ipaddress.ip_network("fc00::/7")  # RFC 4193


def reach_of(address: str) -> str:
    """Who can dial an address: `"loopback"`, `"link"`, `"private"`, `"shared"` (a provider's NAT) or `"public"`."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if ip.is_loopback:
        return "loopback"
    if ip.is_link_local:
        return "link"
    if ip.version == 4 and ip in _SHARED:
        return "shared"
    return "private" if ip.is_private or (ip.version == 6 and ip in _UNIQUE_LOCAL) else "public"


def read_addresses() -> list[str]:
    """Addresses of this machine, the one of its default route first, its outward IPv6 address among them."""
    found = dict.fromkeys(local_addresses())
    with suppress(OSError), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        probe.connect(("2001:db8::1", 9))  # asks the routing table only (RFC 3849)
        found[str(probe.getsockname()[0])] = None
    return list(found)


def judge_addresses(addresses: Sequence[str], port: int) -> Finding:
    """Who could reach a coordinator here. Nodes need nothing of this: they only dial out."""
    reaches = {address: reach_of(address) for address in addresses}
    kinds = set(reaches.values())
    found = ", ".join(f"{address} ({reach})" for address, reach in reaches.items())
    figures: Figures = {
        "addresses": ", ".join(addresses),
        "public": "public" in kinds,
        "ipv6": any(":" in a for a in addresses),
    }
    forward = (
        f"to listen for machines elsewhere: forward port {port} of the router to this machine and give "
        f"CentralServer(advertise=<its public address>), or lend a port of a machine they can reach: "
        f"ssh -R {port}:localhost:{port} there, and advertise that one"
    )
    if kinds <= {"loopback", "link"}:
        return warn(
            "address",
            found,
            "this machine has no network: only processes here can join a run here",
            **figures,
        )
    if "public" in kinds:
        return ok(
            "address", found, f"a firewall must let TCP port {port} in where a coordinator listens", **figures
        )
    if "shared" in kinds:
        how = "a provider shares that address among customers, so no router of yours can forward a port: use the second"
        return warn(
            "address", found, f"{forward}. {how[0].upper()}{how[1:]} way, or an overlay network", **figures
        )
    return ok("address", found, f"machines on this network can join a run here; {forward}", **figures)


@dataclass(frozen=True)
class PortUse:
    """Whether a process of this user could listen on `port`; `holder` and `reason` where it could not."""

    port: int
    is_free: bool
    holder: str | None = None
    reason: str = ""


def read_port(port: int) -> PortUse:
    """Bind every interface for a moment, as a coordinator would; nothing is listened for."""
    family = socket.AF_INET6 if ":" in all_interfaces() else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what only lingers in TIME_WAIT is free
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        try:
            probe.bind((all_interfaces(), port))
        except OSError as error:
            holder = port_holder(port) if error.errno == errno.EADDRINUSE else None
            return PortUse(port, False, holder, error.strerror or str(error))
    return PortUse(port, True)


def judge_port(use: PortUse, own_ports: Sequence[int]) -> Finding:
    """Whether a coordinator can listen; `own_ports` are those of this user's coordinators."""
    figures: Figures = {"port": use.port, "free": use.is_free}
    if use.is_free:
        return ok("port", f"{use.port} is free: a coordinator can listen on it", **figures)
    held = (
        f"{use.port} is taken by {use.holder}" if use.holder else f"{use.port} cannot be had ({use.reason})"
    )
    if use.port in own_ports:
        return ok("port", f"{held}: your coordinator", **figures)
    return warn(
        "port", held, "a coordinator needs another one here: CentralServer(port=0) takes any", **figures
    )


def read_proxies() -> dict[str, str]:
    """The proxies that the environment (or the system, on macOS) names, by scheme."""
    return getproxies()


def judge_proxies(proxies: Mapping[str, str]) -> Finding:
    """What dialling does with them (`wire.proxy`); a password in one is not repeated."""
    chosen = proxies.get("https") or proxies.get("http")
    without = proxies.get("no", "")
    if not chosen:
        return ok("proxy", "none is named: connections are direct", proxy=None)
    parts = urlsplit(chosen)
    try:
        where = join_address(parts.hostname or "?", parts.port or 80)
    except ValueError:
        where = "an address that cannot be read"
    if parts.scheme != "http":
        return warn(
            "proxy",
            f"the one named is of the kind {parts.scheme or 'unknown'} and passed over: connections are direct",
            "an HTTP proxy that allows CONNECT is used: https_proxy=http://host:port",
            proxy=where,
            used=False,
        )
    spared = f", but for {without}" if without else ""
    return ok(
        "proxy",
        f"connections go through the HTTP proxy {where} by CONNECT{spared}; loopback never does",
        "it must allow CONNECT to the coordinator's port; no_proxy=HOST dials that host directly",
        proxy=where,
        used=True,
    )
