"""What a trainer knows of one loader of its job, and what all of them may have in flight."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from manyhands.fleet.channels import Channel
from manyhands.split.credits import MOST_WINDOW_BYTES, Window
from manyhands.split.messages import Used

MOST_CAPACITY: Final = 1024
_ACKS_AT_ONCE: Final = 16


@dataclass(frozen=True)
class Bounds:
    """What the settings allow in flight to a trainer."""

    window_bytes: int = MOST_WINDOW_BYTES
    queue_size: int = 1024
    """Batches."""
    wait_seconds: float | None = None
    """How long to wait for a first or another loader; None: for ever."""


@dataclass(eq=False)
class Seat:
    """One loader of the job."""

    number: int
    name: str
    capacity: int
    channel: Channel
    window: Window
    errand: str = ""
    """See `Hello.errand`."""
    acks: list[int] = field(default_factory=list)
    """Serials that are done with, and not said so yet."""
    acked_bytes: int = 0

    def done(self, serial: int, num_bytes: int) -> None:
        """A batch of this loader's is consumed, or was dropped."""
        self.window.consumed(num_bytes)
        self.acks.append(serial)
        self.acked_bytes += num_bytes

    def used(self, *, every: bool = False) -> Used | None:
        """What to tell the loader of its used batches: some at once, or `every` one, where the trainer waits."""
        window = self.window.window_bytes
        is_due = self.acked_bytes * 4 >= window or len(self.acks) >= _ACKS_AT_ONCE
        if not self.acks or not (is_due or every):
            return None
        message = Used(tuple(self.acks), window)
        self.forget()
        return message

    def forget(self) -> None:
        """Nothing is left to be told."""
        self.acks.clear()
        self.acked_bytes = 0

    def room(self, largest_bytes: int) -> int:
        """Leases that it may hold: what it can be at work on, and what fills its window."""
        if not largest_bytes:
            return self.capacity
        fitting = self.window.window_bytes // largest_bytes
        return max(self.capacity, min(fitting, MOST_CAPACITY))
