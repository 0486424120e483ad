"""What our stream costs: GB/s of 4 MiB messages over TLS, against a bare gRPC stream and against raw TCP.

All three servers live in one process of their own, all three clients here; rounds are interleaved and the
median counts. Bare gRPC gets the same options and certificates, so the difference is ours: admission, outbox,
link, limits. `pack` is where a tensor becomes a message; here a message is ready-made bytes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import socket
import statistics
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import grpc

from manyhands.clock import SystemClock
from manyhands.wire import Gate, Invite, Limits, Link, Listener, NodeKey, Peer, certificates, dial
from manyhands.wire.certificates import COORDINATOR_NAME
from manyhands.wire.limits import client_options, server_options

MESSAGE_BYTES = 4 << 20
END = b"end"
Side = Callable[[int], None]


def pack(payload: bytes) -> bytes:
    """One message from one payload; replace it to measure frames too."""
    return payload


# The three servers: each reads messages until END, and answers once.


async def take(peer: Peer, link: Link) -> None:
    while (message := await link.read()) is not None:
        if message == END:
            await link.write(END)


async def no_questions(peer: Peer, request: bytes) -> bytes:
    return b""


async def take_bare(requests: Any, context: Any) -> None:
    while (message := await context.read()) is not grpc.aio.EOF:
        if message == END:
            await context.write(END)


class Bare(grpc.GenericRpcHandler):
    def service(self, details: grpc.HandlerCallDetails) -> Any:
        return grpc.stream_stream_rpc_method_handler(take_bare)


def take_raw(server: socket.socket) -> None:
    connection, _ = server.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    buffer = bytearray(MESSAGE_BYTES)
    while header := connection.recv(8, socket.MSG_WAITALL):
        (size,) = struct.unpack("<q", header)
        view = memoryview(buffer)[:size]
        while view:
            view = view[connection.recv_into(view) :]
        if size == len(END):
            connection.sendall(END)


def serve(pipe: Pipe, folder: str) -> None:
    asyncio.run(serve_all(pipe, Path(folder)))


async def serve_all(pipe: Pipe, folder: Path) -> None:
    gate = Gate(folder, SystemClock())
    gate.open()
    listener = Listener(gate, host="127.0.0.1", on_stream=take, on_ask=no_questions)
    await listener.start()
    pair = [(gate.identity.key_pem, gate.identity.certificate_pem)]
    bare = grpc.aio.server(options=server_options(Limits()))
    bare.add_generic_rpc_handlers((Bare(),))
    roots = gate.identity.certificate_pem + gate.roots()
    invite = listener.invite()
    credentials = grpc.ssl_server_credentials(pair, roots + gate.roots(), require_client_auth=True)
    bare_port = bare.add_secure_port("127.0.0.1:0", credentials)
    await bare.start()
    raw = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=take_raw, args=(raw,), daemon=True).start()
    pipe.send((str(invite), bare_port, raw.getsockname()[1], gate.identity.certificate_pem))
    await asyncio.to_thread(pipe.recv)
    await bare.stop(0)
    await listener.stop(0)
    gate.close()


# The three clients: each sends a number of messages and waits for the answer.


def our_side(invite: Invite, payload: bytes) -> Side:
    stream = dial(invite, limits=Limits(shares_memory=False)).stream()

    def send(count: int) -> None:
        for _ in range(count):
            stream.send(pack(payload))
        stream.send(END)
        assert stream.receive() == END

    return send


def bare_side(invite: Invite, port: int, certificate: bytes, payload: bytes) -> Side:
    key = NodeKey.temporary()
    leaf = certificates.node_leaf(key.private.public_key(), certificates.invite_key(invite.secret))
    credentials = grpc.ssl_channel_credentials(
        certificate, certificates.key_to_pem(key.private), certificates.to_pem(leaf)
    )
    options = [*client_options(Limits()), ("grpc.ssl_target_name_override", COORDINATOR_NAME)]
    channel = grpc.secure_channel(f"127.0.0.1:{port}", credentials, options)
    wanted: list[int] = []
    wake = threading.Semaphore(0)

    def requests() -> Iterator[bytes]:
        while True:
            wake.acquire()
            for _ in range(wanted.pop()):
                yield payload
            yield END

    answers = channel.stream_stream("/bare/stream")(requests())

    def send(count: int) -> None:
        wanted.append(count)
        wake.release()
        assert next(answers) == END

    return send


def raw_side(port: int, payload: bytes) -> Side:
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(count: int) -> None:
        for message in [payload] * count + [END]:
            connection.sendall(struct.pack("<q", len(message)))
            connection.sendall(message)
        assert connection.recv(len(END), socket.MSG_WAITALL) == END

    return send


def measure(sides: dict[str, Side], rounds: int, count: int) -> dict[str, float]:
    """The median GB/s of each side, after one round that does not count."""
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, send in sides.items():
            start = time.perf_counter()
            send(count)
            seconds = time.perf_counter() - start
            if number:
                speeds[name].append(count * MESSAGE_BYTES / seconds / 1e9)
    return {name: statistics.median(values) for name, values in speeds.items()}


def report(name: str, ours: float, theirs: float, setup: str) -> None:
    line = {
        "name": name,
        "ours": round(ours, 3),
        "theirs": round(theirs, 3),
        "ratio": round(ours / theirs, 3),
    }
    print(json.dumps({**line, "unit": "GB/s", "higher_is_better": True, "setup": setup}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--count", type=int, default=64)
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    with tempfile.TemporaryDirectory() as folder:
        server = context.Process(target=serve, args=(there, f"{folder}/state"))
        server.start()
        line, bare_port, raw_port, certificate = here.recv()
        invite, payload = Invite.parse(line), bytes(range(256)) * (MESSAGE_BYTES // 256)
        sides = {
            "ours": our_side(invite, payload),
            "bare": bare_side(invite, bare_port, certificate, payload),
            "raw": raw_side(raw_port, payload),
        }
        speed = measure(sides, arguments.rounds, arguments.count)
        here.send("stop")
        server.join(20)
    size = f"{arguments.count} messages of 4 MiB a round, median of {arguments.rounds}"
    setup = f"{size}, loopback, server in its own process"
    report("wire", speed["ours"], speed["bare"], f"{setup}; theirs: bare gRPC and TLS 1.3, same options")
    report("wire_vs_tcp", speed["ours"], speed["raw"], f"{setup}; theirs: plain TCP, no encryption")


if __name__ == "__main__":
    main()
