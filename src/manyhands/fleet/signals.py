"""Ctrl-C and SIGTERM while a run goes on: the first one drains, the second one stops."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any


class Signals:
    """While the main thread waits: the first SIGINT or SIGTERM drains, a second one stops at once."""

    def __init__(self, stop: Callable[[], None], words: str = "saving and letting the nodes go") -> None:
        self._stop = stop
        self._words = words
        self._seen: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._caught)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _caught(self, number: int, frame: FrameType | None) -> None:
        if self._seen is not None:
            raise SystemExit(128 + number)
        self._seen = number
        print(f"manyhands: {self._words}; once more stops at once", file=sys.stderr)  # noqa: T201
        self._stop()

    def end(self) -> None:
        """After a drained run: end as the signal asks."""
        if self._seen == signal.SIGINT:
            raise KeyboardInterrupt
        if self._seen is not None:
            raise SystemExit(128 + self._seen)
