"""The floor under a round: gRPC bidirectional streams with the same messages, and nothing of ours above them.

A server writes one message to each of its streams, waits for one answer on each, and begins again. Same TLS 1.3,
same channel options as ours; no client certificate, which only a handshake would notice.
"""

from __future__ import annotations

import asyncio
import time
from multiprocessing.connection import Connection as Pipe
from typing import Any

import grpc

from common.cast import Cast, answer, prepare_process
from common.process import processor_seconds
from manyhands.wire import certificates
from manyhands.wire.certificates import COORDINATOR_NAME
from manyhands.wire.limits import Limits, client_options, server_options

PATH = "/bare/stream"


class _Streams(grpc.GenericRpcHandler):
    """The live streams; each stays open until the end."""

    def __init__(self, expected: int) -> None:
        self._expected = expected
        self.live: list[Any] = []
        self.complete = asyncio.Event()
        self.over = asyncio.Event()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return grpc.stream_stream_rpc_method_handler(self._hold)

    async def _hold(self, requests: Any, context: Any) -> None:
        await context.send_initial_metadata(())
        self.live.append(context)
        if len(self.live) == self._expected:
            self.complete.set()
        await self.over.wait()


def run_bare_server(pipe: Pipe, folder: str, connections: int, message_bytes: int) -> None:
    """Rounds over so many streams; a word is a number of rounds, the answer the milliseconds of each."""
    prepare_process(folder)
    asyncio.run(_serve(pipe, connections, bytes(message_bytes)))


async def _serve(pipe: Pipe, connections: int, message: bytes) -> None:
    key = certificates.new_key()
    pem = certificates.to_pem(certificates.coordinator_certificate(key))
    streams = _Streams(connections)
    server = grpc.aio.server(options=server_options(Limits()))
    server.add_generic_rpc_handlers((streams,))
    credentials = grpc.ssl_server_credentials([(certificates.key_to_pem(key), pem)])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    pipe.send((port, pem))
    await streams.complete.wait()

    async def exchange(context: Any) -> None:
        await context.write(message)
        await context.read()

    while rounds := await asyncio.to_thread(pipe.recv):
        taken = []
        for _ in range(rounds):
            start = time.perf_counter()
            await asyncio.gather(*[exchange(context) for context in streams.live])
            taken.append((time.perf_counter() - start) * 1e3)
        pipe.send(taken)
    streams.over.set()
    await server.stop(1.0)


class Parrots:
    """Clients that answer each message with one of a fixed size; one connection each, all on one event loop."""

    def __init__(self, port: int, certificate: bytes, answer_bytes: int) -> None:
        self._target = f"127.0.0.1:{port}"
        self._certificate = certificate
        self._answer = bytes(answer_bytes)

    async def live(self) -> None:
        """One connection, until the server ends it."""
        credentials = grpc.ssl_channel_credentials(self._certificate)
        options = [*client_options(Limits()), ("grpc.ssl_target_name_override", COORDINATOR_NAME)]
        async with grpc.aio.secure_channel(self._target, credentials, options) as channel:
            call: Any = channel.stream_stream(PATH)()
            while await call.read() is not grpc.aio.EOF:
                await call.write(self._answer)


def run_parrots(pipe: Pipe, folder: str, parrots: Parrots, count: int) -> None:
    """So many parrots in one process."""
    prepare_process(folder)

    async def live() -> None:
        await asyncio.gather(*[parrots.live() for _ in range(count)])

    asyncio.run(live())


class BareRounds:
    """A bare server and its clients, spread over two processes."""

    def __init__(self, cast: Cast, connections: int, message_bytes: int, answer_bytes: int) -> None:
        self._pipe, self._pid = cast.start(run_bare_server, connections, message_bytes)
        port, certificate = answer(self._pipe)
        parrots = Parrots(port, certificate, answer_bytes)
        halves = (connections // 2, connections - connections // 2)
        self._pids = [self._pid, *(cast.start(run_parrots, parrots, half)[1] for half in halves)]

    def turn(self, rounds: int) -> list[float]:
        """Milliseconds of each round."""
        self._pipe.send(rounds)
        taken: list[float] = answer(self._pipe)
        return taken

    def processor_seconds(self) -> float:
        """Of the server so far."""
        return processor_seconds(self._pid)

    def end(self) -> None:
        """Let the processes end."""
        self._pipe.send(0)
