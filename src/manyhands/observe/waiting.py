"""Lines for whoever waits: for whom, and what to run there. On stderr, at once and then every half minute."""

from __future__ import annotations

import sys
from typing import TextIO

from manyhands.clock import Clock
from manyhands.errors import Unreachable

EVERY_SECONDS = 30.0


def tell(text: str, stream: TextIO | None = None) -> None:
    """One line for whoever started this process, on stderr."""
    print(f"manyhands: {text}", file=stream or sys.stderr, flush=True)


class Waiting:
    """One wait; `over` ends it, and the next `say` begins another."""

    def __init__(
        self, clock: Clock, stream: TextIO | None = None, every_seconds: float = EVERY_SECONDS
    ) -> None:
        self._clock = clock
        self._stream = stream
        self._every = every_seconds
        self._since: float | None = None
        self._said: float | None = None

    def say(self, text: str) -> None:
        """Print `text`, unless a line was printed less than `every_seconds` ago. Cheap enough to call often."""
        now = self._clock.monotonic()
        if self._since is None:
            self._since = now
        if self._said is not None and now - self._said < self._every:
            return
        self._said = now
        tell(text, self._stream)

    @property
    def seconds(self) -> float:
        """How long this wait has taken."""
        return 0.0 if self._since is None else self._clock.monotonic() - self._since

    def check(self, limit_seconds: float | None, text: str) -> None:
        """Unreachable with `text` once this wait has taken longer; None: never."""
        if limit_seconds is not None and self.seconds > limit_seconds:
            raise Unreachable(
                f"waited {self.seconds:.1f} s (network.wait_timeout is {limit_seconds:g}): {text}"
            )

    def over(self) -> None:
        """What was waited for is here."""
        self._since = self._said = None
