"""The door of each call: which version, which TLS, which key; then the gate decides.

gRPC's interceptors never see the certificate of the peer, so handlers are wrapped instead. Identity comes
from the connection, never from a message. Without TLS (loopback only) a peer's key and role are what it
says they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import grpc

from manyhands.errors import Mismatch, Refused
from manyhands.wire.admission import Peer, Role
from manyhands.wire.gate import Gate
from manyhands.wire.limits import PLAIN_KEY, PLAIN_ROLE, PROTOCOL, VERSION_KEY

PLAIN_INVITE = "plain"


class Guard:
    """Turns the context of a call into a `Peer`, or raises `Refused` or `Mismatch` with one sentence."""

    def __init__(self, gate: Gate, *, secure: bool) -> None:
        self._gate = gate
        self._secure = secure

    def identify(self, context: grpc.aio.ServicerContext[Any, Any]) -> Peer:
        """The peer behind a call. May wait for the disk: call it outside the event loop's thread."""
        metadata = {str(key): value for key, value in context.invocation_metadata() or ()}
        check_version(metadata.get(VERSION_KEY))
        if self._secure:
            return self._gate.admit(read_certificate(context.auth_context()))
        return plain_peer(metadata)

    def standing(self, peer: Peer) -> str | None:
        """Why a peer may not stay, as one sentence; None where it may."""
        return self._gate.standing(peer) if self._secure else None


def check_version(theirs: str | bytes | None) -> None:
    """Refuse a peer of another protocol version, naming both and who is to upgrade. Raises `Mismatch`."""
    if not isinstance(theirs, str) or not re.fullmatch(r"[0-9]{1,6}", theirs):
        raise Mismatch(f"the coordinator speaks manyhands protocol {PROTOCOL}; this peer named none")
    if int(theirs) != PROTOCOL:
        who = "on this machine" if int(theirs) < PROTOCOL else "on the coordinator"
        raise Mismatch(
            f"the coordinator speaks manyhands protocol {PROTOCOL} and this node protocol {int(theirs)}: "
            f"upgrade manyhands {who}"
        )


def read_certificate(connection: Mapping[str, Any]) -> bytes:
    """The peer's certificate (PEM) out of gRPC's description of a connection. Raises `Refused`.

    The version is checked here too: the cipher suites that forbid TLS 1.2 are a setting of the process,
    and somebody else may have set it first.
    """
    version, leaf = connection.get("ssl_tls_version"), connection.get("x509_pem_cert")
    if version != [b"TLSv1.3"]:
        raise Refused("TLS 1.3 is required, and this connection uses something older")
    if not leaf or len(leaf) != 1:
        raise Refused("a node certificate is required: join with the line that the coordinator prints")
    return bytes(leaf[0])


def plain_peer(metadata: Mapping[str, str | bytes]) -> Peer:
    """The peer that an unencrypted loopback connection claims to be. Raises `Refused` for no such claim."""
    key, role = metadata.get(PLAIN_KEY), metadata.get(PLAIN_ROLE)
    if not isinstance(key, str) or not re.fullmatch(r"[0-9a-f]{32}", key) or role not in list(Role):
        raise Refused("this peer names no key and no role, as a peer without TLS has to")
    return Peer(key, Role(str(role)), PLAIN_INVITE)
