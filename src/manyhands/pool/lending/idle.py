"""When a lent machine's owner needs it: what other programs take decides, once a second. Pure.

::

    lending ── others take more than a quarter of a processor for two seconds ──▶ paused
       ▲                                                                            │
       └───────────── they have taken less for `quiet_seconds` ─────────────────────┘

What this project computes runs at low priority, and the system counts that apart: it is none of the others'.
"""

from __future__ import annotations

BUSY_PROCESSORS = 0.25
BUSY_SECONDS = 2.0


class Idle:
    """Whether to pause, from the seconds of processor time that other programs have taken so far."""

    def __init__(self, quiet_seconds: float) -> None:
        self._quiet_seconds = quiet_seconds
        self._before: tuple[float, float] | None = None
        self._busy_since: float | None = None
        self._quiet_since: float | None = None
        self.is_paused = False

    def tick(self, now: float, others_seconds: float) -> bool:
        """Whether to compute nothing now; `now` and `others_seconds` only grow."""
        before, self._before = self._before, (now, others_seconds)
        if before is None or now <= before[0]:
            return self.is_paused
        if (others_seconds - before[1]) / (now - before[0]) > BUSY_PROCESSORS:
            self._quiet_since = None
            self._busy_since = before[0] if self._busy_since is None else self._busy_since
            self.is_paused = self.is_paused or now - self._busy_since >= BUSY_SECONDS
        else:
            self._busy_since = None
            self._quiet_since = before[0] if self._quiet_since is None else self._quiet_since
            self.is_paused = self.is_paused and now - self._quiet_since < self._quiet_seconds
        return self.is_paused
