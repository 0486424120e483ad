"""Time as an argument: the one module that reads or waits for the real clock.

State machines take ``now`` as a number; shells take a :class:`Clock`. Tests pass a :class:`ManualClock`
and jump it, so nothing in the suite sleeps to make time pass.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What a shell may know of time; all values are seconds."""

    def monotonic(self) -> float:
        """Seconds since an arbitrary start; never goes back."""
        ...

    def time(self) -> float:
        """Seconds since 1970, UTC; may jump when the machine's clock is set."""
        ...

    def sleep(self, seconds: float) -> None:
        """Return after `seconds`."""
        ...


class SystemClock:
    """The machine's own clock."""

    def monotonic(self) -> float:
        """Seconds of the machine's monotonic clock."""
        return time.monotonic()

    def time(self) -> float:
        """Seconds since 1970, UTC."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        """Block this thread for `seconds`."""
        time.sleep(seconds)


class ManualClock:
    """A clock that moves only when told; `sleep` moves it."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def monotonic(self) -> float:
        """The time it was last moved to."""
        return self.now

    def time(self) -> float:
        """The time it was last moved to."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Jump forward by `seconds`."""
        self.now += seconds
