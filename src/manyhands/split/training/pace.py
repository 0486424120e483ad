"""Where the time of an epoch goes, and what to do about it. Pure: durations come in as numbers."""

from __future__ import annotations

from dataclasses import dataclass

NOTICEABLE = 0.2
"""A share of the time below this is nobody's problem."""


@dataclass
class Pace:
    """Seconds of one epoch, by what the trainer did."""

    waiting_seconds: float = 0.0
    """For the next batch."""
    computing_seconds: float = 0.0
    saving_seconds: float = 0.0
    batches: int = 0
    sends_wide_floats: bool = False
    """Whether floats of four bytes and more travel, which could be narrower."""

    @property
    def total_seconds(self) -> float:
        """All of it."""
        return self.waiting_seconds + self.computing_seconds + self.saving_seconds

    def verdict(self, num_loaders: int) -> str:
        """One sentence: what the trainer waits for most, and what would help."""
        total = self.total_seconds
        if total <= 0.0 or self.batches == 0:
            return "nothing measured yet"
        waiting, saving = self.waiting_seconds / total, self.saving_seconds / total
        if waiting >= NOTICEABLE:
            uint8 = " or send uint8" if self.sends_wide_floats else ""
            loaders = "1 loader" if num_loaders == 1 else f"{num_loaders} loaders"
            return f"waiting for {loaders} {waiting:.0%}: add loaders{uint8}"
        if saving >= NOTICEABLE:
            return f"writing checkpoints {saving:.0%}: raise checkpoint_interval"
        return f"computing {1 - waiting - saving:.0%}: the loaders keep up"
