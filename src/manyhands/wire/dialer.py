"""The dialling side: one connection to a coordinator, one stream on it, short questions beside it.

Synchronous, since a node's loop is; safe to use from any thread. A dial makes sure of three things before it
returns: the machine is the pinned one, it knows the invite, and both sides speak one protocol. It knows no
message.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import grpc

from manyhands.errors import ManyhandsError, Unreachable, UsageError
from manyhands.wire import tls
from manyhands.wire.address import is_loopback, is_own, join_address
from manyhands.wire.admission import Role
from manyhands.wire.certificates import COORDINATOR_NAME
from manyhands.wire.failures import from_rpc
from manyhands.wire.invite import Invite
from manyhands.wire.limits import (
    ASK,
    HELLO,
    MEMORY_KEY,
    PLAIN_KEY,
    PLAIN_ROLE,
    PROTOCOL,
    STREAM,
    VERSION_KEY,
    Limits,
    client_options,
)
from manyhands.wire.link import check_size
from manyhands.wire.nodekey import NodeKey
from manyhands.wire.outbox import Outbox
from manyhands.wire.proxy import Route, route_to
from manyhands.wire.shared import Offer, Shared

_Metadata = tuple[tuple[str, str], ...]


def dial(
    target: Invite | tuple[str, int],
    *,
    key: NodeKey | None = None,
    secure: bool = True,
    role: Role | str = Role.NODE,
    timeout_seconds: float = 10.0,
    limits: Limits | None = None,
) -> Connection:
    """Connect to the coordinator of an invite, as the holder of `key` (a temporary one if None).

    With `secure=False` the target is `(host, port)` on loopback, and `role` is what this peer says it is;
    with an invite the role is the invite's. Raises `Unreachable` where nobody answers in time, `Refused`
    with the other side's sentence where it says no, `Mismatch` for another protocol version.
    """
    limits = limits or Limits.configured()
    if not secure:
        return _dial_plain(target, Role(role), timeout_seconds, limits)
    if not isinstance(target, Invite):
        raise UsageError(f"{target[0]}:{target[1]} needs an invite; only secure=False works without")
    return _dial_secure(target, key or NodeKey.temporary(), timeout_seconds, limits)


class Connection:
    """One TCP connection to a coordinator; `close` ends it and everything on it."""

    def __init__(
        self,
        channel: grpc.Channel,
        host: str,
        port: int,
        key_id: str,
        metadata: _Metadata,
        limits: Limits,
    ) -> None:
        self.where = f"{host}:{port}"
        self.key_id = key_id
        self._host = host
        self._channel = channel
        self._metadata = metadata
        self._limits = limits

    def stream(self) -> ClientStream:
        """Open this node's stream; an older one of the same key is ended by the coordinator."""
        offer = Offer.make() if self._limits.shares_memory and is_own(self._host) else None
        return ClientStream(self._channel, self.where, self._metadata, self._limits, offer)

    def ask(self, request: bytes, timeout_seconds: float = 10.0) -> bytes:
        """One question, one answer. Raises what the other side raised, or `Unreachable`.

        Without a stream the coordinator closes a connection after a while, and the next question opens it
        again; one that is asked in that very moment is `Unreachable` and may be asked again.
        """
        check_size(request, self._limits.message_bytes)
        return self._call(ASK, request, timeout_seconds)

    def hello(self, timeout_seconds: float) -> None:
        """Return if the coordinator lets this key in; a first hello takes one use of the invite."""
        self._call(HELLO, b"", timeout_seconds)

    def close(self) -> None:
        """End the connection; a blocked `receive` returns None, a blocked `send` raises. Twice is fine."""
        self._channel.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, path: str, request: bytes, timeout_seconds: float) -> bytes:
        try:
            method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(path)
            return method(request, timeout=timeout_seconds, metadata=self._metadata)
        except grpc.RpcError as error:
            raise from_rpc(error, self.where) from None
        except ValueError:  # what gRPC raises for a closed channel
            raise Unreachable(f"the connection to {self.where} is closed") from None


class ClientStream:
    """A node's stream: `send` from any thread, `receive` (or iterate) in one.

    `sent_bytes` and `received_bytes` are of all messages, without what TLS and HTTP/2 add. With an `offer` large ones
    pass through shared memory as soon as the other side has opened it.
    """

    def __init__(
        self,
        channel: grpc.Channel,
        where: str,
        metadata: _Metadata,
        limits: Limits,
        offer: Offer | None = None,
    ) -> None:
        self._where = where
        self._offer = offer
        self._shared: Shared | None = None
        self._order = threading.Lock()
        self._message_bytes = limits.message_bytes
        self._outbox = Outbox(limits.outbox_bytes)
        self._is_closed = threading.Event()
        self.received_bytes = 0
        self.sent_bytes = 0
        if offer is not None:
            metadata = (*metadata, (MEMORY_KEY, offer.where))
        try:
            method: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(STREAM)
            self._call: Any = method(self._outbox, metadata=metadata)
        except ValueError:
            raise Unreachable(f"the connection to {where} is closed") from None
        if not self._call.add_callback(self._ended):
            self._ended()

    def send(self, message: bytes) -> None:
        """Hand over one message; returns at once unless 16 MiB wait already.

        Raises `ProtocolError` for a message over the limit, and what ended the stream if it is over.
        """
        check_size(message, self._message_bytes)
        with self._order:  # notes leave in the order in which their messages were placed
            self._outbox.put(message if self._shared is None else self._shared.wrap(message))
            self.sent_bytes += len(message)

    def receive(self) -> bytes | None:
        """The next message; None when the coordinator ended the stream well, or after `close` here.

        Raises `Refused` with its sentence where the coordinator ended it otherwise (replaced, revoked,
        removed), and `Unreachable` where the connection broke.
        """
        try:
            message: bytes = next(self._call)
            if self._offer is not None and self._is_taken(self._offer, message):
                message = next(self._call)
        except StopIteration:
            return None
        except grpc.RpcError as error:
            if self._is_closed.is_set():
                return None
            raise from_rpc(error, self._where) from None
        if self._shared is not None:
            message = self._shared.unwrap(message, self._message_bytes)
        self.received_bytes += len(message)
        return message

    def __iter__(self) -> Iterator[bytes]:
        """Messages until `receive` would give None."""
        while (message := self.receive()) is not None:
            yield message

    def finish(self) -> None:
        """Send what waits and then no more; the coordinator may still answer."""
        self._outbox.end(UsageError("this stream was finished: nothing more can be sent on it"))

    def close(self) -> None:
        """End the stream at once, from any thread; what waits is forgotten. Twice is fine."""
        self._is_closed.set()
        self._outbox.close(Unreachable(f"the stream to {self._where} was closed here"))
        self._call.cancel()

    def _is_taken(self, offer: Offer, first: bytes) -> bool:
        """Whether the other side's first message says that it has opened the memory."""
        is_taken = first == offer.shared.greeting
        with self._order:
            self._shared, self._offer = offer.shared if is_taken else None, None
        offer.close()
        return is_taken

    def _ended(self) -> None:
        """In a thread of gRPC: the call is over, so nothing may wait for it any longer."""
        failure: ManyhandsError = Unreachable(f"the stream to {self._where} has ended")
        if not self._is_closed.is_set() and self._call.code() is not grpc.StatusCode.OK:
            failure = from_rpc(self._call, self._where)
        self._outbox.close(failure)
        if self._offer is not None:
            self._offer.close()


@dataclass(frozen=True, slots=True)
class _Door:
    """What one secure dial knows: where, as whom, by which way, and how long it may take."""

    invite: Invite
    key: NodeKey
    route: Route
    timeout_seconds: float


def _dial_secure(invite: Invite, key: NodeKey, timeout_seconds: float, limits: Limits) -> Connection:
    door = _Door(invite, key, route_to(invite.host, invite.port), timeout_seconds)
    server_pem = tls.fetch_certificate(door.route.connect, invite, timeout_seconds)
    credentials = tls.channel_credentials(invite, key, server_pem)
    options = [
        *client_options(limits),
        *door.route.options,
        ("grpc.ssl_target_name_override", COORDINATOR_NAME),
    ]
    channel = grpc.secure_channel(join_address(invite.host, invite.port), credentials, options)
    metadata = ((VERSION_KEY, str(PROTOCOL)),)
    connection = Connection(channel, invite.host, invite.port, key.key_id, metadata, limits)
    return _greet(connection, timeout_seconds, door)


def _dial_plain(
    target: Invite | tuple[str, int], role: Role, timeout_seconds: float, limits: Limits
) -> Connection:
    host, port = (target.host, target.port) if isinstance(target, Invite) else target
    if not is_loopback(host):
        raise UsageError(f"secure=False sends plain text, and {host!r} is not loopback: use an invite")
    key_id = secrets.token_hex(16)
    metadata = ((VERSION_KEY, str(PROTOCOL)), (PLAIN_KEY, key_id), (PLAIN_ROLE, role.value))
    options = [*client_options(limits), ("grpc.enable_http_proxy", 0)]
    channel = grpc.insecure_channel(join_address(host, port), options)
    return _greet(Connection(channel, host, port, key_id, metadata, limits), timeout_seconds, None)


def _greet(connection: Connection, timeout_seconds: float, door: _Door | None) -> Connection:
    try:
        connection.hello(timeout_seconds)
    except Unreachable:
        connection.close()
        if door is not None and _is_turned_away(door):
            raise tls.not_ours() from None
        raise
    except BaseException:
        connection.close()
        raise
    return connection


def _is_turned_away(door: _Door) -> bool:
    """Whether the coordinator is there and drops this leaf: asked twice, so that a restart is no refusal."""

    def is_dropped() -> bool:
        tls.fetch_certificate(door.route.connect, door.invite, door.timeout_seconds)
        return not tls.is_accepted(door.route.connect, door.invite, door.key, door.timeout_seconds)

    try:
        return is_dropped() and is_dropped()
    except ManyhandsError:
        return False
