"""`manyhands launch --hosts a,b`: one ssh to each machine, and one console for all of them.

::

    1 ssh to every host at once          a host that ssh cannot reach ends the launch, and is named
    2 node 0 gets its task               it listens, and tells where
    3 the others get theirs              each tries to reach node 0 before it starts anything
    4 lines, notes and failures come in  one console, tags by host and rank
    5 a host fails, or Ctrl-C            the others are told, then stopped, then cut off

The state of a launch is `_hosts` and the queue of what they say; all decisions are taken in one thread.
"""

from __future__ import annotations

import queue
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from types import FrameType
from typing import Any

from manyhands import errors
from manyhands.clock import Clock, SystemClock
from manyhands.errors import ManyhandsError
from manyhands.launch.blame import describe, judge
from manyhands.launch.options import Order
from manyhands.launch.remote import Task, write_task
from manyhands.launch.ssh import Remote, Said
from manyhands.launch.telling import Console, read_into

_FAREWELL_SECONDS = 4.0
_STOP_SECONDS = 6.0
_SIGNALLED_SECONDS = 30.0
"""How long ranks may take to end after a signal."""
_POLL_SECONDS = 0.05


class _Conductor:
    def __init__(self, order: Order, console: Console, clock: Clock) -> None:
        self._order = order
        self._console = console
        self._clock = clock
        self._said: queue.SimpleQueue[Said] = queue.SimpleQueue()
        self._hosts = [
            Remote(host, rank, order.ssh, order.remote_python, self._said)
            for rank, host in enumerate(order.hosts)
        ]
        self._token = token_hex(8)
        self._signals: list[signal.Signals] = []
        self._num_heeded = 0
        self._error: ManyhandsError | None = None
        self._cut_at: float | None = None
        self._is_hung_up = False

    def run(self) -> int:
        """Start, listen, end; the exit code."""
        started: list[Remote] = []
        with self._signals_noted():
            try:
                for host in self._hosts:
                    host.start()
                    started.append(host)
                self._hosts[0].send(
                    write_task(self._task(self._hosts[0], self._order.torchrun.master_port, []))
                )
                while any(host.code is None for host in self._hosts):
                    self._turn()
            finally:
                for host in started:
                    host.end()
                self._console.close()
        return self._outcome()

    def _turn(self) -> None:
        """Whatever was said, or a moment of silence."""
        try:
            host, event = self._said.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            self._console.tick()
        else:
            self._hear(host, event)
        self._heed()
        self._hurry()

    def _heed(self) -> None:
        """Pass the first signal on to the ranks; a second one cuts all connections."""
        num_before, self._num_heeded = self._num_heeded, len(self._signals)
        if self._num_heeded > num_before == 0:
            for host in self._hosts:
                host.send(f"{self._signals[0].name}\n")
            self._cut_at = self._clock.monotonic() + _SIGNALLED_SECONDS
        if self._num_heeded > max(num_before, 1):
            self._cut_at = self._clock.monotonic()

    def _hear(self, host: Remote, event: dict[str, Any] | None) -> None:
        match event:
            case None if host.code is None:
                host.code = 0
                self._fail(host.lost())
            case None:
                return
            case {"event": "listening", "port": port, "addresses": addresses}:
                for other in self._hosts[1:]:
                    other.send(write_task(self._task(other, port, addresses)))
            case {"event": "error", "kind": kind, "text": text}:
                host.code = 0
                self._fail(getattr(errors, kind)(f"{host.host.name}: {text}"))
            case {"event": "done", "code": code}:
                host.code = code
                if code:
                    self._begin_end()
            case _:
                read_into(self._console, event, host.name, self._clock.monotonic())

    def _fail(self, error: ManyhandsError) -> None:
        """The first error is told at the end; what follows it follows from it."""
        self._error = self._error or error
        self._begin_end()

    def _begin_end(self) -> None:
        """Machines see for themselves that a peer has failed; those that do not are stopped."""
        if self._cut_at is None:
            self._cut_at = self._clock.monotonic() + _FAREWELL_SECONDS

    def _hurry(self) -> None:
        """Step 5: hang up, then cut off."""
        if self._cut_at is None or self._clock.monotonic() < self._cut_at:
            return
        for host in self._hosts:
            if host.code is None:
                if self._is_hung_up:
                    host.code = 0
                else:
                    host.hang_up()
        self._is_hung_up = True
        self._cut_at = self._clock.monotonic() + _STOP_SECONDS

    def _task(self, host: Remote, port: int | None, addresses: list[str]) -> Task:
        return Task(
            arguments=list(self._order.arguments),
            folder=str(Path.cwd()),
            host=host.name,
            node_rank=host.node_rank,
            num_nodes=len(self._hosts),
            nproc=host.host.num_processes,
            port=port,
            token=self._token,
            addresses=addresses,
        )

    def _outcome(self) -> int:
        if self._signals:
            self._console.note(f"stopped by {self._signals[0].name}: all machines were told")
            return 128 + self._signals[0]
        if self._console.failures:
            verdict = judge(self._console.failures)
            sys.stderr.write(describe(verdict))
            sys.stderr.flush()
            return verdict.exit_code
        if self._error is not None:
            raise self._error
        return max(host.code or 0 for host in self._hosts)

    @contextmanager
    def _signals_noted(self) -> Iterator[None]:
        """Count signals in the place of being ended by one."""
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, self._on_signal) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals.append(signal.Signals(number))  # the next turn heeds it: nothing may be sent from here


def conduct(order: Order) -> int:
    """Run `order` on the machines that it names; the exit code of the rank that failed first."""
    return _Conductor(order, Console(), SystemClock()).run()
