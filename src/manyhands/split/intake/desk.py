"""What the streams' threads and the trainer's thread share of a job, under one lock."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from manyhands.clock import Clock
from manyhands.errors import ManyhandsError
from manyhands.split.intake.account import Account
from manyhands.split.intake.posts import Post, say


@dataclass
class Desk:
    """The account, and what ends it; `turn` is to be held by whoever reads or changes any of it."""

    account: Account
    clock: Clock
    turn: threading.Condition = field(default_factory=threading.Condition)
    failure: ManyhandsError | None = None
    """What stops the job."""
    is_stopped: bool = False
    """Whether the trainer wants no more batches."""

    def now(self) -> float:
        """Seconds of a monotonic clock."""
        return self.clock.monotonic()

    @contextmanager
    def posting(self) -> Iterator[list[Post]]:
        """Hold the lock; whoever waits for it looks again, and what was put into the list is said, without it."""
        posts: list[Post] = []
        with self.turn:
            yield posts
            self.turn.notify_all()
        say(posts)
