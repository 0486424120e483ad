"""Hosts with slow and far links, on one machine: a network namespace each, and this process in the middle.

::

    host "hub" ── rate, delay ──┐
    host "n1"  ── rate, delay ──┤ the core: carries each packet when its two links let it
    host "n2"  ── rate, delay ──┘

Each host has one device, ``wan0``, a TUN whose other end is here. A packet waits for the sender's link, then for
the delays of both ends, then for the receiver's link: a queue per direction, dropped at its tail like a router's.
Linux only; needs root, ``ip`` and /dev/net/tun. The kernel's own shaper (netem) is missing in many containers.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import itertools
import os
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

DEVICE = "wan0"
NETWORK = "10.233.0"
MTU = 9000
"""Large, to keep this process off the processors that are measured."""
_QUEUE_SECONDS = 0.5
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI, _CLONE_NEWNET = 0x400454CA, 0x0001, 0x1000, 0x40000000
_PR_SET_PDEATHSIG = 1
_BURST = 64


@dataclass
class Direction:
    """One direction of a link: it sends one packet after another, at `rate_bytes` a second (0: at once)."""

    rate_bytes: float
    free_at: float = 0.0

    def send(self, num_bytes: int, now: float) -> float | None:
        """When the packet has left; None where the queue is full."""
        start = max(self.free_at, now)
        if start - now > _QUEUE_SECONDS:
            return None
        self.free_at = start + (num_bytes / self.rate_bytes if self.rate_bytes else 0.0)
        return self.free_at


@dataclass
class Host:
    """A namespace, its address, its link."""

    name: str
    number: int
    rate_mbit: float
    delay_seconds: float
    up: Direction = field(init=False)
    down: Direction = field(init=False)
    tun: int = field(init=False)

    def __post_init__(self) -> None:
        self.up, self.down = (Direction(self.rate_mbit * 125_000) for _ in range(2))

    @property
    def address(self) -> str:
        return f"{NETWORK}.{self.number}"

    def create(self) -> None:
        """The namespace with its device; this process keeps the other end."""
        _ip("netns", "add", self.name)
        with entered(self.name):
            self.tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(self.tun, _TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), _IFF_TUN | _IFF_NO_PI))
        _ip("-n", self.name, "addr", "add", f"{self.address}/24", "dev", DEVICE)
        _ip("-n", self.name, "link", "set", DEVICE, "mtu", str(MTU), "up")
        _ip("-n", self.name, "link", "set", "lo", "up")


@contextmanager
def entered(namespace: str) -> Iterator[None]:
    """This thread inside `namespace`; sockets that it opens belong there for good, threads that it starts too."""
    with open("/proc/thread-self/ns/net") as here:  # noqa: PTH123 - a handle on where we are, not a file
        enter(namespace)
        try:
            yield
        finally:
            _set_namespace(here.fileno())


def enter(namespace: str) -> None:
    """This thread into `namespace`, to stay."""
    with open(f"/run/netns/{namespace}") as there:  # noqa: PTH123
        _set_namespace(there.fileno())


@contextmanager
def hosts(*wanted: Host) -> Iterator[Sequence[Host]]:
    """The hosts, with a process that carries their packets until the block ends."""
    if os.geteuid() != 0:
        raise SystemExit("hosts with links of their own need root (network namespaces)")
    made: list[Host] = []
    try:
        for host in wanted:
            host.create()
            made.append(host)
        carrier = os.fork()  # before any thread runs: this module loads nothing that starts one
        if carrier == 0:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, 9)
            _carry(made)
        yield made
        os.kill(carrier, 9)
        os.waitpid(carrier, 0)
    finally:
        for host in made:
            _ip("netns", "del", host.name)


def _carry(made: Sequence[Host]) -> None:
    """Carry packets until killed."""
    by_address = {socket.inet_aton(host.address): host for host in made}
    by_tun = {host.tun: host for host in made}
    tickets, waiting = itertools.count(), list[tuple[float, int, int, bytes]]()
    poll = select.epoll()
    for tun in by_tun:
        poll.register(tun, select.EPOLLIN)
    while True:
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            _, _, tun, packet = heapq.heappop(waiting)
            os.write(tun, packet)
        for tun, _ in poll.poll(max(0.0, waiting[0][0] - now) if waiting else None):
            source = by_tun[tun]
            for packet in _packets(tun):
                target = by_address.get(packet[16:20]) if packet[0] >> 4 == 4 else None
                if target is None:
                    continue
                now = time.monotonic()
                left = source.up.send(len(packet), now)
                there = None if left is None else target.down.send(len(packet), left)
                if there is not None:
                    due = there + source.delay_seconds + target.delay_seconds
                    heapq.heappush(waiting, (due, next(tickets), target.tun, packet))


def _packets(tun: int) -> Iterator[bytes]:
    for _ in range(_BURST):
        try:
            yield os.read(tun, MTU + 100)
        except BlockingIOError:
            return


def _set_namespace(descriptor: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, stdout=sys.stderr)
