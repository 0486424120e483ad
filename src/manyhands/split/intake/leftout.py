"""Samples that could not be made and are left out: named once each, and counted where they are too many to name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from manyhands.observe.text import clean_line
from manyhands.observe.waiting import tell
from manyhands.split.jobs import Made, Phase

MOST_NAMED: Final = 20
_SHOWN_CHARACTERS: Final = 200


@dataclass
class LeftOut:
    """Tells of the bad samples of one job."""

    _named: set[tuple[Phase, int]] = field(default_factory=set)
    _is_full: bool = False

    def add(self, loader: str, made: Made) -> None:
        """A batch came; its bad samples are named, unless they were in an epoch before."""
        for fault in made.faults:
            sample = made.work.phase, fault.index
            if self._is_full or sample in self._named:
                continue
            if len(self._named) >= MOST_NAMED:
                self._is_full = True
                tell(f"more than {MOST_NAMED} samples are left out; the others are not named")
                return
            self._named.add(sample)
            reason = clean_line(fault.error.partition("\n")[0], max=_SHOWN_CHARACTERS)
            tell(
                f"left out sample {fault.index} of the {sample[0]} data, which {loader} could not make: {reason}"
            )
