"""The cluster's side of one child process: started by a list of arguments, never forked into.

Its events are read by a thread of their own until the pipe ends, so that what a killed process said last is
heard. Knows nothing of pools.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from manyhands.clock import SystemClock
from manyhands.errors import RunFailed

Event = dict[str, Any]
_LAST_LINES = 15


class Process:
    """One child, its log file and what it said."""

    def __init__(self, label: str, log: Path) -> None:
        self.label = label
        self.log = log
        self._events: list[Event] = []
        self._said = threading.Condition()
        self._child: subprocess.Popen[bytes]
        self._reader: threading.Thread

    def start(self, order: Mapping[str, Any], env: Mapping[str, str]) -> None:
        """Spawn it, in a process group of its own; `order` is what its first line says.

        It dies with the calling thread (Linux), so call this from one that lasts.
        """
        events, theirs = os.pipe()
        try:
            with self.log.open("ab") as log:
                self._child = subprocess.Popen(
                    [sys.executable, "-m", "manyhands.testing.child"],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    pass_fds=(theirs,),
                    env=dict(env),
                    start_new_session=True,
                )
        finally:
            os.close(theirs)
        self._reader = threading.Thread(target=self._read, args=(events,), name=f"manyhands-{self.label}")
        self._reader.daemon = True
        self._reader.start()
        self.tell({**order, "events": theirs})

    def tell(self, order: Mapping[str, Any]) -> None:
        """Send an order; one to a process that died is lost."""
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps(order).encode() + b"\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            return

    # ---- what it said ----

    def events(self, name: str) -> list[Event]:
        """All events of that name so far."""
        with self._said:
            return [event for event in self._events if event["event"] == name]

    def wait_event(
        self, name: str, timeout_seconds: float, accept: Callable[[Event], bool] = lambda event: True
    ) -> Event:
        """The first such event. TimeoutError when it does not come, RunFailed when the process ended first."""
        found: list[Event] = []

        def look() -> bool:
            found[:] = [e for e in self._events if e["event"] == name and accept(e)]
            return bool(found) or self._events[-1:] == [{"event": "gone"}]

        with self._said:
            if not self._said.wait_for(look, timeout_seconds):
                raise TimeoutError(f"{self.label} did not say {name!r} in {timeout_seconds} s\n{self.tail()}")
        if not found:
            raise RunFailed(
                f"{self.label} ended ({self.returncode(5.0)}) before it said {name!r}\n{self.tail()}"
            )
        return found[0]

    def tail(self) -> str:
        """The end of its log."""
        lines = self.read_log().splitlines()[-_LAST_LINES:]
        return "\n".join(f"  {self.label} | {line}" for line in lines)

    def read_log(self) -> str:
        """Everything it printed."""
        return self.log.read_text(errors="replace")

    # ---- its life ----

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid

    @property
    def is_running(self) -> bool:
        """Whether it has not ended; a stopped one has not."""
        return self._child.poll() is None

    def returncode(self, timeout_seconds: float) -> int:
        """Its exit code (minus a signal's number); waits for it, TimeoutError where it goes on."""
        try:
            return self._child.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{self.label} still runs after {timeout_seconds} s\n{self.tail()}") from None

    def signal(self, number: int) -> None:
        """Send a signal; to a process that ended, nothing happens."""
        self._child.send_signal(number)

    def close(self) -> None:
        """Kill it and all it started, and wait until nothing of it is left."""
        try:
            os.killpg(self._child.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # macOS says the second of a group that has ended
            self._child.kill()
        self._child.wait()
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.close()
        self._reader.join()

    def _read(self, events: int) -> None:
        with os.fdopen(events, "rb") as pipe:
            for line in pipe:
                if line.endswith(b"\n"):
                    self._hear(json.loads(line))
        self._hear({"event": "gone"})

    def _hear(self, event: Event) -> None:
        with self._said:
            self._events.append(event)
            self._said.notify_all()


def wait_for(ask: Callable[[], bool], timeout_seconds: float, what: str) -> None:
    """Ask again and again until it is true; TimeoutError naming `what` where it never is."""
    clock = SystemClock()
    deadline = clock.monotonic() + timeout_seconds
    while not ask():
        if clock.monotonic() >= deadline:
            raise TimeoutError(f"{what}: not within {timeout_seconds} s")
        clock.sleep(0.02)
