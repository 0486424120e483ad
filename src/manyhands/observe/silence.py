"""How long a peer has been silent, as far as anybody listened. Pure.

Whoever was stopped himself (Ctrl-Z, a laptop that slept) has heard nothing either, and may not blame others: of the
time between two looks, no more than a second counts.
"""

from __future__ import annotations

MOST_GAP_SECONDS = 1.0


class Silence:
    """Of one peer; to be looked at more often than once a second, for as long as it should say something."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._sign: object = None
        self._looked_at: float | None = None

    def look(self, sign: object, now: float) -> float:
        """Seconds since `sign`, a value that changes with each sign of life, was another; `now` is a clock's."""
        gap = 0.0 if self._looked_at is None else min(now - self._looked_at, MOST_GAP_SECONDS)
        self.seconds = self.seconds + gap if sign == self._sign else 0.0
        self._sign, self._looked_at = sign, now
        return self.seconds
