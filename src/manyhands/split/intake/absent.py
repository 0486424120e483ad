"""Loaders whose stream broke and who may be on their way back: how long a trainer that ends waits for them. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

EXPECTED_SECONDS: Final = 10.0
"""Who was away for longer when the job ended is not waited for."""
LINGER_SECONDS: Final = 3.0
"""... and who was not, so long: a loader whose stream broke dials again at least every two seconds."""


@dataclass
class Absent:
    """When the stream of each call broke, of those that are not back."""

    _since: dict[str, float] = field(default_factory=dict)

    def gone(self, errand: str, now: float) -> None:
        """A stream broke."""
        self._since[errand] = now

    def back(self, errand: str) -> None:
        """It is here again."""
        self._since.pop(errand, None)

    def is_expected(self, ended: float, now: float) -> bool:
        """Whether somebody may still come for the end of a job that ended then."""
        if now - ended > LINGER_SECONDS:
            return False
        return any(ended - since <= EXPECTED_SECONDS for since in self._since.values())
