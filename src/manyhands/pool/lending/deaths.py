"""How often a run's program took its compute child with it, and when that is enough. Pure."""

from __future__ import annotations

from manyhands.errors import Refused
from manyhands.observe.text import clean_name

MOST_DEATHS = 3


class Deaths:
    """Counts by run: another run brings another program."""

    def __init__(self) -> None:
        self._run = ""
        self._count = 0

    def count(self, run: str | None, sentence: str) -> str:
        """One more, with the program of `run` (None: before any came); what to say. Refused after three of them."""
        if (run or "") != self._run:
            self._run, self._count = run or "", 0
        self._count += 1
        what = f"the program of run {clean_name(run)}" if run else "torch alone, before any program came"
        if self._count >= MOST_DEATHS:
            raise Refused(
                f"{sentence}; that was the {self._count}rd time with {what}, and this machine tries it no more"
            )
        return f"{sentence}; it is started again ({self._count} of {MOST_DEATHS} times with {what})"
