"""The one place of a loader where batches are made, for however many trainers it has.

A thread of its own asks the maker for what is ready and hands it to whoever wanted it. Knows no network and no
credits: what is asked for here was leased, and leases are bounded.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable

from manyhands.errors import ManyhandsError, RunFailed
from manyhands.split.jobs import Made, Maker, Work

_TICK_SECONDS = 0.2
_CLOSE_SECONDS = 5.0
"""A dataset that hangs must not keep the end of a job from its caller; its thread goes with the process."""

OnMade = Callable[[Made], None]


class Workshop:
    """Makes works and calls whoever asked, on its thread."""

    def __init__(self, maker: Maker, on_failure: Callable[[ManyhandsError], None]) -> None:
        self._maker = maker
        self._on_failure = on_failure
        self._wanted: dict[Work, deque[OnMade]] = defaultdict(deque)
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._main, name="manyhands-workshop", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def submit(self, work: Work, on_made: OnMade) -> None:
        """Make `work`; never blocks. The same work may be asked for again, and is made again."""
        with self._lock:
            self._wanted[work].append(on_made)
        self._maker.submit(work)

    def close(self) -> None:
        """Stop, and stop the maker."""
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join(_CLOSE_SECONDS)
        self._maker.close()

    def _main(self) -> None:
        try:
            while not self._closing.is_set():
                made = self._maker.next(_TICK_SECONDS)
                if made is not None:
                    self._take(made.work)(made)
        except ManyhandsError as error:
            self._on_failure(error)
        except Exception as error:  # noqa: BLE001 - a thread's edge: whatever broke must reach who waits
            self._on_failure(RunFailed(f"making batches failed: {type(error).__name__}: {error}"))

    def _take(self, work: Work) -> OnMade:
        with self._lock:
            waiting = self._wanted[work]
            on_made = waiting.popleft()
            if not waiting:
                del self._wanted[work]
        return on_made
