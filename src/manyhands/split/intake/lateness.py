"""When a batch is late: by how long others took, since nobody knows what a batch costs before one has come. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

LATE_SECONDS: Final = 1.0
LATE_FACTOR: Final = 3.0
"""A batch for which the trainer waits so many times longer than any took before is leased a second time."""
LATE_AT_FIRST_SECONDS: Final = 60.0
"""... and before any came, so long: whoever has it may hang, and a first sample may be slow to come."""
_FORGETTING: Final = 0.9


@dataclass
class Lateness:
    """How long batches take, from their lease to their arrival."""

    _leased_at: dict[int, float] = field(default_factory=dict)
    _slowest_seconds: float | None = None

    def leased(self, serial: int, now: float) -> None:
        """A batch was leased; the first lease counts."""
        self._leased_at.setdefault(serial, now)

    def came(self, serial: int, now: float) -> None:
        """A batch came that was leased; what was slow once is forgotten by and by."""
        seconds = now - self._leased_at.pop(serial)
        self._slowest_seconds = max(seconds, _FORGETTING * (self._slowest_seconds or 0.0))

    def is_late(self, waited_seconds: float) -> bool:
        """Whether what was waited for so long should be asked of another loader."""
        if self._slowest_seconds is None:
            return waited_seconds > LATE_AT_FIRST_SECONDS
        return waited_seconds > max(LATE_SECONDS, LATE_FACTOR * self._slowest_seconds)

    def forget(self) -> None:
        """No lease is open."""
        self._leased_at.clear()
