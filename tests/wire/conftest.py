"""A real coordinator for the tests of this room: its own event loop in a thread, real TLS on a free port."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from manyhands.clock import ManualClock
from manyhands.wire import Gate, Invite, Limits, Link, Listener, Peer


class Coordinator:
    """A listener that echoes, and remembers which peers reached it."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.clock = ManualClock(1_700_000_000.0)
        self.gate = Gate(folder, self.clock)
        self.streamed: list[Peer] = []
        self.asked: list[tuple[Peer, bytes]] = []
        self.ended: list[str] = []
        self.opened = threading.Event()
        self.over = threading.Event()
        self.serve: Callable[[Peer, Link], Coroutine[Any, Any, None]] = echo
        self.answer: Callable[[Peer, bytes], bytes] = lambda peer, request: request[::-1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="coordinator")
        options = {"host": "127.0.0.1", **options}
        self.listener = Listener(self.gate, on_stream=self._stream, on_ask=self._ask, **options)

    def start(self) -> Coordinator:
        self.gate.open()
        self._thread.start()
        self.port = self.call(self.listener.start())
        return self

    def call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def stop(self, grace_seconds: float = 0.0) -> None:
        if self._thread.is_alive():
            self.call(self.listener.stop(grace_seconds))
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)
        self._loop.close()
        self.gate.close()

    def invite(self, *args: Any, **kwargs: Any) -> Invite:
        return self.listener.invite(*args, **kwargs)

    async def _stream(self, peer: Peer, link: Link) -> None:
        self.streamed.append(peer)
        self.opened.set()
        try:
            await self.serve(peer, link)
            self.ended.append("returned")
        except asyncio.CancelledError:
            self.ended.append("cancelled")
            raise
        except BaseException as error:
            self.ended.append(type(error).__name__)
            raise
        finally:
            self.over.set()

    async def _ask(self, peer: Peer, request: bytes) -> bytes:
        self.asked.append((peer, request))
        return self.answer(peer, request)


async def echo(peer: Peer, link: Link) -> None:
    while (message := await link.read()) is not None:
        await link.write(message)


@pytest.fixture
def make_coordinator(tmp_path: Path) -> Iterator[Callable[..., Coordinator]]:
    """Start coordinators; each is stopped at the end. `folder` names its state, a new one by default."""
    made: list[Coordinator] = []

    def make(folder: str | None = None, **options: Any) -> Coordinator:
        coordinator = Coordinator(tmp_path / (folder or f"state-{len(made)}"), **options)
        made.append(coordinator)
        return coordinator.start()

    yield make
    for coordinator in made:
        coordinator.stop()


@pytest.fixture
def coordinator(make_coordinator: Callable[..., Coordinator]) -> Coordinator:
    """One whose messages all travel on the stream, as those of another machine do."""
    return make_coordinator(limits=Limits(handshake_seconds=1.0, idle_seconds=1.0, shares_memory=False))


class Tap:
    """A plain TCP proxy that keeps what it sees, and can go deaf without closing anything."""

    def __init__(self, port: int) -> None:
        self.seen = [bytearray(), bytearray()]  # from the node, from the coordinator
        self.closed = threading.Event()
        self.deaf = threading.Event()
        self._target = port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._target))
            self._sockets += [near, far]
            for index, pair in enumerate(((near, far), (far, near))):
                thread = threading.Thread(target=self._copy, args=(index, *pair))
                self._threads.append(thread)
                thread.start()

    def _copy(self, index: int, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                self.seen[index] += data
                if not self.deaf.is_set():
                    target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        self.closed.set()

    def close(self) -> None:
        for each in (self._server, *self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join(5)


@pytest.fixture
def make_tap() -> Iterator[Callable[[int], Tap]]:
    """Proxies to ports; closed at the end."""
    made: list[Tap] = []

    def make(port: int) -> Tap:
        made.append(Tap(port))
        return made[-1]

    yield make
    for tap in made:
        tap.close()
