"""When a compute child has been at one thing for too long: a decision over its pulses, without a clock of its own.

What a leaf may take follows from what leaves took here. Before the first one nothing is known, and a coordinator
waits 900 s for a joining node's probe, which is a leaf or two: so a child has longer than that.
"""

from __future__ import annotations

from manyhands.pool.lending.words import Pulse

FIRST_SECONDS = 1200.0
LEAST_SECONDS = 120.0
TIMES_SLOWEST = 30.0
LONGEST_TICK_SECONDS = 5.0
"""What a tick counts at most: after a longer pause this process was stopped itself, and so was the child."""


class Watchdog:
    """Counts the seconds that one child went on without a sign."""

    def __init__(self) -> None:
        self._silent_seconds = 0.0
        self._ticked_at: float | None = None
        self._last: Pulse | None = None
        self._leaves_before = 0

    def pulse(self, pulse: Pulse) -> None:
        """The child told how it does."""
        if self._last is None or pulse.busy_seconds == 0.0 or pulse.leaves != self._last.leaves:
            self._silent_seconds = 0.0
        self._last = pulse

    def opened(self) -> None:
        """A stream was opened for the child: it will receive a program and a probe before it has a leaf."""
        self._silent_seconds = 0.0
        self._leaves_before = 0 if self._last is None else self._last.leaves

    def fed(self) -> None:
        """Something was sent to the child: what it waited for may only come now."""
        self._silent_seconds = 0.0

    def tick(self, now: float, *, is_stopped: bool) -> str | None:
        """Once a second or so; why the child must go, or None. A child that its owner stopped has time."""
        before, self._ticked_at = self._ticked_at, now
        if before is None or is_stopped:
            return None
        self._silent_seconds += min(now - before, LONGEST_TICK_SECONDS)
        if self._silent_seconds <= self.limit_seconds:
            return None
        slowest = 0.0 if self._last is None else self._last.slowest_seconds
        known = f"its slowest leaf took {slowest:.1f} s" if slowest else "it has finished no leaf yet"
        return f"it showed no progress for {self._silent_seconds:.0f} s ({known})"

    @property
    def limit_seconds(self) -> float:
        """How long it may go on without a sign."""
        if self._last is None or self._last.leaves <= self._leaves_before:
            return FIRST_SECONDS
        return max(LEAST_SECONDS, TIMES_SLOWEST * self._last.slowest_seconds)
