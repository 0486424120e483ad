"""Between a cluster and one of its processes: orders down its standard input, events up a pipe of their own.

The child's side. A child must not outlive the cluster: on Linux the kernel kills it with the thread that
started it, and everywhere the end of its standard input does.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
from typing import Any

from manyhands.clock import SystemClock

_PR_SET_PDEATHSIG = 1
_STDIN = 0


class Channel:
    """A child's line to the cluster that started it."""

    def __init__(self, events: int) -> None:
        self._events = events
        self._lock = threading.Lock()
        self._clock = SystemClock()

    def say(self, event: str, **fields: Any) -> None:
        """Report an event and when it was; it is with the cluster when this returns, whatever happens next."""
        line = json.dumps({"event": event, "at_seconds": self._clock.monotonic(), **fields}).encode() + b"\n"
        with self._lock:
            os.write(self._events, line)

    def order(self) -> dict[str, Any]:
        """The next order; SystemExit where the cluster is gone."""
        return _read_order()

    def watch(self) -> None:
        """From now on, die when the cluster closes its end; no further order is read."""
        threading.Thread(target=self._wait_for_the_end, name="manyhands-orphan", daemon=True).start()

    def _wait_for_the_end(self) -> None:
        while os.read(_STDIN, 4096):
            pass
        os.kill(os.getpid(), signal.SIGKILL)


def die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the thread that started this process ends (Linux; else nothing)."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def begin() -> tuple[Channel, dict[str, Any]]:
    """What a child does first: bind its life to the cluster's, and read its first order."""
    die_with_parent()
    order = _read_order()
    for folder in order["path"]:
        if folder not in sys.path:
            sys.path.append(folder)
    return Channel(order["events"]), order


def _read_order() -> dict[str, Any]:
    """One line of JSON, byte by byte: a buffer would hold back the next, and its lock would outlive us."""
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = os.read(_STDIN, 1)
        if not byte:
            raise SystemExit(1)
        line += byte
    order: dict[str, Any] = json.loads(line)
    return order
