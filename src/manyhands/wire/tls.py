"""TLS as this project uses it: version 1.3, a pin instead of names, roots that change while we listen.

It turns the gate's roots and a node's invite into gRPC credentials, and looks at a coordinator's certificate
before gRPC does. It decides nothing about who may come in.
"""

from __future__ import annotations

import hmac
import socket
import ssl
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from manyhands.errors import Refused, StorageError, Unreachable
from manyhands.wire import certificates
from manyhands.wire.admission import NEW_LINE
from manyhands.wire.gate import Gate
from manyhands.wire.invite import Invite
from manyhands.wire.nodekey import NodeKey

Connect = Callable[[float], socket.socket]
"""Opens a TCP connection to the coordinator within so many seconds, through a proxy where there is one."""

_ASK = "is the coordinator running, and are host and port right?"


def server_credentials(gate: Gate) -> grpc.ServerCredentials:
    """Mutual TLS with the gate's roots as they are at each handshake, so that a new invite works at once."""
    seen = gate.version()

    def fetch() -> Any:
        # Returns a configuration, or None for "as before"; gRPC's stubs forget the None.
        nonlocal seen
        try:
            version = gate.version()
            if version == seen:
                return None
            seen = version
            return _configuration(gate)
        except StorageError:
            # gRPC's own thread: nobody above could catch it. The roots stay as they were, and the
            # table, which is the authority, refuses each call.
            return None

    return grpc.dynamic_ssl_server_credentials(
        _configuration(gate), fetch, require_client_authentication=True
    )


def channel_credentials(invite: Invite, key: NodeKey, server_pem: bytes) -> grpc.ChannelCredentials:
    """A node's half: its leaf, signed here with the invite's key, and the pinned certificate as only root."""
    key_pem, leaf_pem = _node_pair(invite, key)
    return grpc.ssl_channel_credentials(server_pem, key_pem, leaf_pem)


def fetch_certificate(connect: Connect, invite: Invite, timeout_seconds: float) -> bytes:
    """The coordinator's certificate as PEM, if its key is the pinned one.

    TLS 1.3 shows it before it asks for ours, so nothing of the node is given away. Raises `Refused` for
    another key and `Unreachable` where nobody answers, or nobody that speaks TLS 1.3.
    """
    where = f"{invite.host}:{invite.port}"
    try:
        with connect(timeout_seconds) as plain, _context().wrap_socket(plain) as secure:
            der = secure.getpeercert(binary_form=True)
    except Unreachable:  # from a proxy, with its own reason
        raise
    except TimeoutError:
        raise Unreachable(f"{where} did not answer within {timeout_seconds:g} s: {_ASK}") from None
    except ssl.SSLError as error:
        reason = error.reason or "the handshake failed"
        raise Unreachable(f"what answers at {where} does not speak TLS 1.3 ({reason}): {_ASK}") from None
    except OSError as error:
        raise Unreachable(f"cannot reach {where} ({error.strerror or error}): {_ASK}") from None
    return _pinned(der or b"", invite)


def is_accepted(connect: Connect, invite: Invite, key: NodeKey, timeout_seconds: float) -> bool:
    """Whether the coordinator keeps a connection with this leaf open; asked only after gRPC failed.

    gRPC drops a leaf of a root that it does not know without a word, which looks like a lost connection.
    """
    context = _context()
    key_pem, leaf_pem = _node_pair(invite, key)
    # Python reads a client certificate from a file only; mkstemp makes it 0600.
    with tempfile.NamedTemporaryFile(prefix="manyhands-") as file:
        file.write(key_pem + leaf_pem)
        file.flush()
        context.load_cert_chain(Path(file.name))
    try:
        with connect(timeout_seconds) as plain, context.wrap_socket(plain) as secure:
            return secure.recv(1) != b""
    except TimeoutError:
        return True
    except OSError:
        return False


def not_ours() -> Refused:
    """The refusal of an invite whose root the coordinator does not know."""
    return Refused(f"this invite is not one of this run's, the coordinator does not know it: {NEW_LINE}")


def _pinned(der: bytes, invite: Invite) -> bytes:
    wrong = Refused(
        f"the machine at {invite.host}:{invite.port} is not the one that made the invite "
        "(its key is not the pinned one): check the address, or ask for a new line"
    )
    try:
        certificate = x509.load_der_x509_certificate(der)
        public = certificate.public_key()
    except ValueError:
        raise wrong from None
    if not isinstance(public, ec.EllipticCurvePublicKey):
        raise wrong
    if not hmac.compare_digest(certificates.fingerprint(public), invite.pin):
        raise wrong
    return certificates.to_pem(certificate)


def _context() -> ssl.SSLContext:
    """No name and no authority is checked here: the pin is, right after the handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    return context


def _node_pair(invite: Invite, key: NodeKey) -> tuple[bytes, bytes]:
    signer = certificates.invite_key(invite.secret)
    leaf = certificates.node_leaf(key.private.public_key(), signer)
    return certificates.key_to_pem(key.private), certificates.to_pem(leaf)


def _configuration(gate: Gate) -> grpc.ServerCertificateConfiguration:
    # An empty list of roots would let anyone in; the coordinator's own certificate signs no leaf.
    identity = gate.identity
    pair = [(identity.key_pem, identity.certificate_pem)]
    return grpc.ssl_server_certificate_configuration(pair, gate.roots() or identity.certificate_pem)
