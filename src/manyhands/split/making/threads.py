"""Makers without processes: one that works when it is asked, one with a thread of its own.

One thread, not several: a sample is made while the process's generators are set for it, and there is one set of them.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from typing import Final

from manyhands.split.jobs import Made, Phase, Work
from manyhands.split.making.assembler import Assembler
from manyhands.split.recipe import Recipe

AHEAD: Final = 2
"""Batches that a thread makes before they are asked for."""


class InlineMaker:
    """A `Maker` that makes a batch when it is asked for it, on the thread that asks."""

    def __init__(self, recipes: Mapping[Phase, Recipe]) -> None:
        self._assembler = Assembler(recipes)
        self._turn = threading.Condition()
        self._waiting: deque[Work] = deque()
        self._is_closed = False

    def submit(self, work: Work) -> None:
        """Queue `work`."""
        with self._turn:
            self._waiting.append(work)
            self._turn.notify()

    def next(self, timeout_seconds: float | None = None) -> Made | None:
        """The oldest batch that was submitted, made now; None where none was in time, or it is closed.

        UsageError where its samples do not make a batch.
        """
        with self._turn:
            self._turn.wait_for(lambda: self._waiting or self._is_closed, timeout_seconds)
            if not self._waiting:
                return None
            work = self._waiting.popleft()
        return self._assembler.make(work)

    def close(self) -> None:
        """Whoever waits gets None; nothing is running."""
        with self._turn:
            self._is_closed = True
            self._turn.notify_all()


class ThreadMaker:
    """A `Maker` that works ahead on one thread."""

    def __init__(self, recipes: Mapping[Phase, Recipe]) -> None:
        self._assembler = Assembler(recipes)
        self._turn = threading.Condition()
        self._waiting: deque[Work] = deque()
        self._ready: deque[Made | Exception] = deque()
        self._is_closing = False
        self._thread = threading.Thread(target=self._serve, name="manyhands-worker", daemon=True)

    def start(self) -> None:
        """Begin to make what is submitted."""
        self._thread.start()

    def submit(self, work: Work) -> None:
        """Queue `work`."""
        with self._turn:
            self._waiting.append(work)
            self._turn.notify_all()

    def next(self, timeout_seconds: float | None = None) -> Made | None:
        """The next batch that is ready, in the order of submission; None when the time is over, or it is closed.

        UsageError where its samples do not make a batch.
        """
        with self._turn:
            self._turn.wait_for(lambda: self._ready or self._is_closing, timeout_seconds)
            if not self._ready:
                return None
            made = self._ready.popleft()
            self._turn.notify_all()
        if isinstance(made, Exception):
            raise made
        return made

    def close(self) -> None:
        """End the thread; a batch that is being made is waited for."""
        with self._turn:
            self._is_closing = True
            self._turn.notify_all()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            with self._turn:
                self._turn.wait_for(lambda: self._is_closing or (self._waiting and len(self._ready) < AHEAD))
                if self._is_closing:
                    return
                work = self._waiting.popleft()
            try:
                made: Made | Exception = self._assembler.make(work)
            except Exception as error:  # noqa: BLE001 - the thread's edge: whoever waits for the batch gets it
                made = error
            with self._turn:
                self._ready.append(made)
                self._turn.notify_all()
