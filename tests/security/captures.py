"""Listening in on the line: a TCP relay that records (works everywhere), and a packet socket on loopback (root).

``Needles`` are what must not be seen. Any 16 bytes in a row of them, at any place of the capture, count as seen.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

WINDOW_BYTES = 16
_LEAST_DISTINCT_BYTES = 8
"""Fewer than these in a window are no evidence: zeros and paddings are everywhere."""
_ETH_P_ALL, _ETHERNET_BYTES, _TCP = 3, 14, 6


class Needles:
    """Secrets under the labels that a test names them by."""

    def __init__(self) -> None:
        self._windows: dict[bytes, str] = {}

    def add(self, label: str, secret: bytes, step: int = 1) -> None:
        """Look for each window of `secret` that begins at a multiple of `step` bytes."""
        for start in range(0, len(secret) - WINDOW_BYTES + 1, step):
            window = secret[start : start + WINDOW_BYTES]
            if len(set(window)) >= _LEAST_DISTINCT_BYTES:
                self._windows[window] = label

    @property
    def labels(self) -> set[str]:
        """Everything that is looked for."""
        return set(self._windows.values())

    def seen_in(self, captured: bytes) -> set[str]:
        """The labels of which at least one window stands in `captured`."""
        windows = self._windows
        ends = range(WINDOW_BYTES, len(captured) + 1)
        return {windows[w] for end in ends if (w := captured[end - WINDOW_BYTES : end]) in windows}


class Relay:
    """Passes bytes on between who dials it and `port`, and keeps them."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._kept: list[bytearray] = []
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        self._start(self._accept)

    def seen(self) -> bytes:
        """All bytes so far, one direction of one connection after the other."""
        return b"".join(bytes(kept) for kept in self._kept)

    def close(self) -> None:
        """Cut every connection."""
        for each in (self._server, *self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join(10)

    def _start(self, work: Any, *arguments: Any) -> None:
        self._threads.append(threading.Thread(target=work, args=arguments, name="relay"))
        self._threads[-1].start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._target))
            self._sockets += [near, far]
            for source, target in ((near, far), (far, near)):
                self._kept.append(bytearray())
                self._start(self._pass_on, source, target, self._kept[-1])

    def _pass_on(self, source: socket.socket, target: socket.socket, kept: bytearray) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                kept += data
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


class Packets:
    """What a packet socket sees of TCP on loopback from or to some ports."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        self._socket.bind(("lo", 0))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
        self._socket.settimeout(0.2)
        self._packets: list[bytes] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="packets")
        self._thread.start()

    def seen(self, *ports: int) -> bytes:
        """The payloads of those ports' segments, one after the other."""
        return b"".join(_payload(packet, ports) for packet in self._packets)

    def close(self) -> None:
        """Stop listening."""
        self._over.set()
        self._thread.join(10)
        self._socket.close()

    def _listen(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(TimeoutError):
                self._packets.append(self._socket.recv(1 << 17))


def may_capture() -> bool:
    """Whether this process may open a packet socket."""
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()
    except (OSError, AttributeError):  # no right to, or no Linux
        return False
    return True


@contextlib.contextmanager
def closing_all() -> Iterator[list[Any]]:
    """Close what was put into the list, the last first."""
    opened: list[Any] = []
    try:
        yield opened
    finally:
        for each in reversed(opened):
            each.close()


def _payload(packet: bytes, ports: tuple[int, ...]) -> bytes:
    """RFC 791 and RFC 9293: the header lengths stand in words of four bytes."""
    ip = packet[_ETHERNET_BYTES:]
    if len(ip) < 40 or ip[0] >> 4 != 4 or ip[9] != _TCP:
        return b""
    tcp = ip[4 * (ip[0] & 15) :]
    if len(tcp) < 20 or not set(struct.unpack_from("!HH", tcp)) & set(ports):
        return b""
    return tcp[4 * (tcp[12] >> 4) :]
