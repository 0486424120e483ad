"""Which worker makes which batch into which slot of shared memory: pure bookkeeping, no process in it.

::

    submit ─▶ waiting ─assign─▶ running (worker, slot) ─finish─▶ ready ─take─▶ with the consumer ─free─▶ slot
                 ▲                    │
                 └────── bury ────────┘   a worker died: what it had is made again, by its successor or another

A worker has at most two batches, so that it need not wait for the next; running and ready ones together are at most
two a worker, so what lies ready is bounded whatever the consumer's speed.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from manyhands.split.jobs import Work

PER_WORKER: Final = 2
MOST_DEATHS: Final = 3
"""So many workers may die making one batch before it is taken for the cause."""
SPARE_SLOTS: Final = 2
"""A worker: batches that a consumer may hold as they lie; beyond that it gets copies."""


@dataclass
class Job:
    """One batch on its way; `slot` is -1 while it waits."""

    ticket: int
    work: Work
    is_stream: bool
    slot: int = -1
    deaths: int = 0


class Assignments:
    """The account of `num_workers` workers and their slots."""

    def __init__(self, num_workers: int) -> None:
        self._most_ahead = PER_WORKER * num_workers
        self.num_slots = self._most_ahead + SPARE_SLOTS * num_workers
        self._free_slots = list(range(self.num_slots))
        self._waiting: deque[Job] = deque()
        self._running: list[deque[Job]] = [deque() for _ in range(num_workers)]
        self._num_ready = 0
        self._tickets = 0

    @property
    def num_running(self) -> int:
        """Batches that workers have now."""
        return sum(len(jobs) for jobs in self._running)

    @property
    def has_spare_slot(self) -> bool:
        """Whether a consumer may keep a slot: else workers would stand still until it lets go."""
        return bool(self._free_slots)

    def submit(self, work: Work, *, is_stream: bool) -> None:
        """One batch more to make. A stream's batches all go to the first worker, which reads it."""
        self._waiting.append(Job(self._tickets, work, is_stream))
        self._tickets += 1

    def assign(self) -> list[tuple[int, Job]]:
        """What to give to which worker now, in order; the oldest batches first."""
        given: list[tuple[int, Job]] = []
        passed: deque[Job] = deque()
        while self._waiting and self._free_slots and self.num_running + self._num_ready < self._most_ahead:
            job = self._waiting.popleft()
            worker = 0 if job.is_stream else min(range(len(self._running)), key=self._load)
            if self._load(worker) >= PER_WORKER:
                passed.append(job)
                continue
            job.slot = self._free_slots.pop()
            self._running[worker].append(job)
            given.append((worker, job))
        self._waiting.extendleft(reversed(passed))
        return given

    def finish(self, worker: int, ticket: int) -> Job:
        """`worker` has made its oldest batch, which is ready now. ValueError where that has another ticket."""
        jobs = self._running[worker]
        if not jobs or jobs[0].ticket != ticket:
            raise ValueError(f"worker {worker} answered batch {ticket}, which is not its oldest")
        self._num_ready += 1
        return jobs.popleft()

    def take(self) -> None:
        """The consumer has taken one that was ready."""
        self._num_ready -= 1

    def free(self, slot: int) -> None:
        """Nobody looks at this slot any more."""
        self._free_slots.append(slot)

    def bury(self, worker: int) -> Job | None:
        """A worker died: its batches wait again, first in line; the one that it was at, if any."""
        jobs = self._running[worker]
        guilty = jobs[0] if jobs else None
        if guilty is not None:
            guilty.deaths += 1
        for job in reversed(jobs):
            self.free(job.slot)
            job.slot = -1
            self._waiting.appendleft(job)
        jobs.clear()
        return guilty

    def _load(self, worker: int) -> int:
        return len(self._running[worker])
