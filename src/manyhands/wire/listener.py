"""The listening side: one port, one long-lived stream a peer, short questions beside it.

::

    connection ─► TLS 1.3 with a leaf of a known root ─► guard: version, gate ─► on_stream(peer, link)
                        │ no: dropped                       │ no: one sentence     on_ask(peer, request)
                        ▼                                   ▼
    a change of the table ─► each live link is judged again ─► cancelled and told why, within half a second

Messages are bytes here; what they mean is the business of the floors above. The listener decides nothing
about admission and keeps nothing of a peer that was refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import grpc

from manyhands.errors import ManyhandsError, ProtocolError, RunFailed, StorageError, Unreachable, UsageError
from manyhands.wire.address import (
    all_interfaces,
    bind_host,
    is_loopback,
    is_own,
    join_address,
    outward_address,
    parse_address,
    peer_host,
)
from manyhands.wire.admission import Peer, Role
from manyhands.wire.failures import to_status
from manyhands.wire.gate import Gate
from manyhands.wire.guard import Guard
from manyhands.wire.invite import Invite
from manyhands.wire.limits import ASK, HELLO, MEMORY_KEY, STREAM, Limits, server_options
from manyhands.wire.link import Link
from manyhands.wire.ports import port_holder
from manyhands.wire.shared import Shared, accept
from manyhands.wire.tls import server_credentials

OnStream = Callable[[Peer, Link], Awaitable[None]]
OnAsk = Callable[[Peer, bytes], Awaitable[bytes]]
_Context = grpc.aio.ServicerContext[Any, Any]

_T = TypeVar("_T")
_LOG = logging.getLogger("manyhands.wire")
_WATCH_SECONDS = 0.5
_FAREWELL_SECONDS = 1.0
_REPLACED = (
    "replaced by a newer connection of the same node: where two machines have copies of one state folder, each puts "
    "the other out; remove the folder keys in one of them"
)


class Listener:
    """A gRPC server for bytes, guarded by `gate`.

    `on_stream` serves one live stream a key: when it returns, the stream ends well; it is cancelled when
    the peer's connection breaks, when the same key opens a newer stream (served once the older handler has
    ended), and when its invite is revoked or its key banned. `on_ask` answers one short question. An error
    of ours that either raises reaches the peer as the same class with the same sentence; any other is
    logged here and is a `RunFailed` there.

    `host=None` means all interfaces when secure and loopback when not; `port=0` picks a free one;
    `advertise` (`"host"` or `"host:port"`) is the address for invites where it is not the bound one.
    """

    def __init__(
        self,
        gate: Gate,
        *,
        on_stream: OnStream,
        on_ask: OnAsk,
        host: str | None = None,
        port: int = 0,
        secure: bool = True,
        advertise: str | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._gate = gate
        self._on_stream = on_stream
        self._on_ask = on_ask
        self._host = host
        self._port = port
        self._secure = secure
        self._advertise = advertise
        self._limits = limits or Limits.configured()
        self._guard = Guard(gate, secure=secure)
        self._links: dict[str, Link] = {}
        self._server: grpc.aio.Server | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._judges: ThreadPoolExecutor | None = None

    async def start(self) -> int:
        """Listen; returns the bound port. The gate must be open.

        Raises `UsageError` for plaintext off loopback, a host that is not this machine's, or a port in
        use, naming the process that holds it where this can be seen.
        """
        host = await asyncio.to_thread(_host_to_bind, self._host, self._secure)
        server = grpc.aio.server(
            options=server_options(self._limits), maximum_concurrent_rpcs=self._limits.calls
        )
        server.add_generic_rpc_handlers((_Routes(self._serve_stream, self._serve_ask, self._serve_hello),))
        self._port = self._bind(server, host)
        # One thread, so that two calls of a node are judged in the order in which they came.
        self._judges = ThreadPoolExecutor(1, thread_name_prefix="manyhands-gate")
        await server.start()
        self._server = server
        loop = asyncio.get_running_loop()
        self._gate.on_change(lambda: _wake(loop, self._changed))
        self._watcher = asyncio.create_task(self._watch())
        return self._port

    async def stop(self, grace_seconds: float = 1.0) -> None:
        """Take no more calls; after `grace_seconds` cancel the handlers left, and tell their peers."""
        server, self._server = self._server, None
        if server is None:
            return
        if self._watcher is not None:
            self._watcher.cancel()
        stopping = asyncio.create_task(server.stop(grace_seconds + 2 * _FAREWELL_SECONDS))
        await asyncio.wait({stopping}, timeout=grace_seconds)
        for link in list(self._links.values()):
            link.close(Unreachable("the coordinator has stopped"))
        await stopping
        if self._judges is not None:
            self._judges.shutdown(wait=False)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port under which others are told to dial."""
        if self._advertise is not None:
            return parse_address(self._advertise, self._port)
        if self._host is None:
            return (outward_address() if self._secure else "127.0.0.1"), self._port
        return self._host, self._port

    def invite(self, role: Role | str = Role.NODE, uses: int = 64, hours: float = 24.0) -> Invite:
        """A new invite to this listener's address; it works at once."""
        host, port = self.address
        return self._gate.add(role, uses, hours, host=host, port=port)

    def live_peers(self) -> list[Peer]:
        """The peers with a live stream."""
        return [link.peer for link in self._links.values()]

    def _bind(self, server: grpc.aio.Server, host: str) -> int:
        target = join_address(host, self._port)
        try:
            if self._secure:
                return server.add_secure_port(target, server_credentials(self._gate))
            return server.add_insecure_port(target)
        except RuntimeError:
            holder = port_holder(self._port) if self._port else None
            whose = (
                f"{holder} holds it"
                if holder
                else "another process holds it, or the address is not this machine's"
            )
            raise UsageError(
                f"cannot listen on {target}, {whose}: stop that one, or choose another port "
                "(0 picks a free one)"
            ) from None

    async def _serve_hello(self, request: bytes, context: _Context) -> bytes:
        await self._identify(context)
        return b""

    async def _serve_ask(self, request: bytes, context: _Context) -> bytes:
        peer = await self._identify(context)
        answer = await self._answer(peer, request)
        del request  # see _bare
        if isinstance(answer, ManyhandsError):
            await _abort(context, answer)
        assert isinstance(answer, bytes)  # abort always raises
        return answer

    async def _answer(self, peer: Peer, request: bytes) -> bytes | ManyhandsError:
        if len(request) > self._limits.question_bytes:
            return ProtocolError(
                f"a question of {len(request):,} bytes is over the limit of {self._limits.question_bytes:,}"
            )
        try:
            return await self._on_ask(peer, request)
        except ManyhandsError as error:
            return _bare(error)
        except Exception:  # noqa: BLE001  # an RPC edge: the peer gets a sentence, the log gets the traceback
            return _own_fault(peer)

    async def _serve_stream(self, requests: object, context: _Context) -> None:
        peer = await self._identify(context)
        link = Link(peer, context, self._limits.message_bytes)
        older, self._links[peer.key_id] = self._links.get(peer.key_id), link
        try:
            if older is not None:
                older.close(_REPLACED)
                await older.ended.wait()
            # The table may have changed between the gate's answer and this registration.
            await self._judge(link)
            failure = await self._run(peer, link, self._shared_with(context))
        finally:
            link.release()
            link.ended.set()
            if self._links.get(peer.key_id) is link:
                del self._links[peer.key_id]
        if failure is not None:
            await _abort(context, failure)

    def _shared_with(self, context: _Context) -> Shared | None:
        """The memory that a neighbour offers; what comes from elsewhere is not looked at."""
        if not self._limits.shares_memory or not is_own(peer_host(context.peer())):
            return None
        offers = [value for key, value in context.invocation_metadata() or () if key == MEMORY_KEY]
        return accept(str(offers[0])) if offers else None

    async def _attend(self, peer: Peer, link: Link, shared: Shared | None) -> None:
        if shared is not None:
            await link.share(shared)
        await self._on_stream(peer, link)

    async def _run(self, peer: Peer, link: Link, shared: Shared | None) -> ManyhandsError | None:
        """Serve until the handler ends or the link is closed; the error to tell the peer, if any."""
        if link.closing.done():
            return link.closing.result()
        handler = asyncio.ensure_future(self._attend(peer, link, shared))
        ends: set[asyncio.Future[Any]] = {handler, link.closing}
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not handler.done():
                handler.cancel()
                await asyncio.wait({handler})
        if link.closing.done():
            return link.closing.result()
        return _outcome(peer, handler)

    async def _identify(self, context: _Context) -> Peer:
        try:
            return await self._ask_table(lambda: self._guard.identify(context))
        except ManyhandsError as error:
            _LOG.info("refused a peer at %s: %s", context.peer(), error)
            await _abort(context, error)
        raise AssertionError("abort always raises")

    async def _judge(self, link: Link) -> None:
        reason = await self._ask_table(lambda: self._guard.standing(link.peer))
        if reason is not None:
            link.close(reason)

    async def _ask_table(self, question: Callable[[], _T]) -> _T:
        """The table may wait for the disk or for another process; the event loop must not."""
        return await asyncio.get_running_loop().run_in_executor(self._judges, question)

    async def _watch(self) -> None:
        """Judge every live link again after each change, also after one made by another process."""
        seen = -1
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), _WATCH_SECONDS)
            self._changed.clear()
            try:
                seen = await self._judge_all(seen)
            except StorageError as error:
                _LOG.warning("live streams could not be judged, next attempt soon: %s", error)

    async def _judge_all(self, seen: int) -> int:
        """Judge if the table is newer than version `seen`; returns the version that was judged."""
        version = await self._ask_table(self._gate.version)
        if version != seen:
            for link in list(self._links.values()):
                await self._judge(link)
        return version


class _Routes(grpc.GenericRpcHandler):
    """Three paths over raw bytes, without protobuf."""

    def __init__(self, stream: Any, ask: Any, hello: Any) -> None:
        self._handlers: dict[str, Any] = {
            STREAM: grpc.stream_stream_rpc_method_handler(stream),
            ASK: grpc.unary_unary_rpc_method_handler(ask),
            HELLO: grpc.unary_unary_rpc_method_handler(hello),
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """The handler of a path, or None for a path that does not exist."""
        return self._handlers.get(handler_call_details.method)


def _host_to_bind(host: str | None, secure: bool) -> str:
    if host is None:
        return all_interfaces() if secure else "127.0.0.1"
    if not secure and not is_loopback(host):
        raise UsageError(
            f"host {host!r} is not loopback, and secure=False sends everything in plain text: "
            "leave secure=True, or listen on localhost"
        )
    return bind_host(host)


def _outcome(peer: Peer, handler: asyncio.Future[None]) -> ManyhandsError | None:
    try:
        handler.result()
    except ManyhandsError as error:
        return _bare(error)
    except Exception:  # noqa: BLE001  # an RPC edge: the peer gets a sentence, the log gets the traceback
        return _own_fault(peer)
    return None


def _bare(error: ManyhandsError) -> ManyhandsError:
    """The error without the frames that raised it, which hold the peer's message.

    gRPC keeps what ended a call in cycles until the collector comes by, and it counts objects, not bytes:
    refused messages of megabytes each made a gigabyte in seconds.
    """
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def _own_fault(peer: Peer) -> RunFailed:
    """Called while the exception is being handled."""
    _LOG.exception("serving node %s failed", peer.key_id[:8])
    return RunFailed("the coordinator failed while it served this node; its log says why")


async def _abort(context: _Context, error: ManyhandsError) -> None:
    """End a call with a status; a peer that does not read is not waited for."""
    code, details = to_status(error)
    try:
        await asyncio.wait_for(context.abort(code, details), _FAREWELL_SECONDS)
    except TimeoutError:
        # gRPC cannot take back the few messages that it holds for such a peer; the connection's end does.
        raise asyncio.CancelledError from None


def _wake(loop: asyncio.AbstractEventLoop, changed: asyncio.Event) -> None:
    with contextlib.suppress(RuntimeError):  # the loop of a listener that is gone
        loop.call_soon_threadsafe(changed.set)
