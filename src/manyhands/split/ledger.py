"""Which batch is with whom: the pure accounting behind exactly-once.

::

    plan ──► leased to a loader ──► arrived ──► consumed ──► covered by a checkpoint
                    │ the loader died, or is late                (what a resumed trainer need not see again)
                    └──► leased again; the first answer counts, another one is a duplicate

Works have serial numbers in the order of need; the trainer consumes them in that order and each once, so *consumed*
is one number. A loader's open leases are bounded by what it said it can make at once, what arrived by the byte
window (`credits`), and how far anything runs ahead by `max_ahead`. No clock, no tensors, no sockets: answers are
numbers here.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from manyhands.errors import ProtocolError
from manyhands.split.jobs import Work

MOST_HOLDERS = 2
"""A late batch is leased to this many loaders at the same time."""


class Lease(NamedTuple):
    """`work`, number `serial`, is for `loader` to make."""

    loader: int
    serial: int
    work: Work


@dataclass
class _Member:
    capacity: int
    open: set[int] = field(default_factory=set)


@dataclass
class _Entry:
    work: Work
    holders: set[int] = field(default_factory=set)
    has_arrived: bool = False


@dataclass
class Counts:
    """What happened so far."""

    leased: int = 0
    reissued: int = 0
    arrived: int = 0
    duplicates: int = 0
    consumed: int = 0


class Ledger:
    """Leases the works of one sequence after another; `seek` begins a new sequence."""

    def __init__(self, max_ahead: int = 1024) -> None:
        self.counts = Counts()
        self._max_ahead = max_ahead
        self._members: dict[int, _Member] = {}
        self._entries: dict[int, _Entry] = {}
        self._waiting: list[int] = []
        self._works: Iterator[Work] = iter(())
        self._next_serial = 0
        self._head = 0
        self._is_exhausted = True

    # ---- the sequence ----

    def seek(self, works: Iterator[Work]) -> int:
        """Lease `works` from now on and forget every open lease; the serial number of the first one."""
        self._works, self._is_exhausted = works, False
        self._entries.clear()
        self._waiting.clear()
        for member in self._members.values():
            member.open.clear()
        self._head = self._next_serial
        return self._head

    @property
    def head(self) -> int:
        """The serial number that is needed next: all below it are consumed, or were forgotten."""
        return self._head

    def work_at_head(self) -> Work | None:
        """What is needed next; None where the sequence has ended."""
        if self._head not in self._entries and (serial := self._extend()) is not None:
            heapq.heappush(self._waiting, serial)
        entry = self._entries.get(self._head)
        return entry.work if entry is not None else None

    def has_arrived(self, serial: int) -> bool:
        """Whether this batch is here, and not consumed yet."""
        entry = self._entries.get(serial)
        return entry is not None and entry.has_arrived

    def consumed(self) -> int:
        """The head is consumed; its serial number."""
        entry = self._entries.get(self._head)
        if entry is None or not entry.has_arrived:
            raise AssertionError(f"batch {self._head} was consumed before it came")
        for loader in entry.holders:  # a late second holder may still make it: it comes as a duplicate
            self._members[loader].open.discard(self._head)
        del self._entries[self._head]
        self._head += 1
        self.counts.consumed += 1
        return self._head - 1

    # ---- loaders ----

    def join(self, loader: int, capacity: int) -> None:
        """A loader that makes up to `capacity` batches at once."""
        self._members[loader] = _Member(max(1, capacity))

    def resize(self, loader: int, capacity: int) -> None:
        """It may be given so many at once from now on."""
        self._members[loader].capacity = max(1, capacity)

    def work(self, serial: int) -> Work | None:
        """The work of a serial number; None where it is consumed, was forgotten, or never was."""
        entry = self._entries.get(serial)
        return None if entry is None else entry.work

    def leave(self, loader: int) -> list[Work]:
        """A loader is gone; the works that must be made by another one now."""
        member = self._members.pop(loader, None)
        lost: list[Work] = []
        for serial in sorted(member.open if member else ()):
            entry = self._entries[serial]
            entry.holders.discard(loader)
            if not entry.has_arrived and not entry.holders:
                heapq.heappush(self._waiting, serial)
                lost.append(entry.work)
        self.counts.reissued += len(lost)
        return lost

    def grant(self) -> list[Lease]:
        """The leases to give out now: the lowest serial first, to the loader with the most room."""
        leases: list[Lease] = []
        while (loader := self._roomiest()) is not None and (serial := self._take()) is not None:
            leases.append(self._lease(serial, loader))
        return leases

    def hedge(self) -> list[Lease]:
        """The head is late, says who waits for it: lease to others whatever its holder has not delivered.

        Nothing where no other loader is there, or it was done already. Answers of both are welcome: the first counts.
        """
        head = self._entries.get(self._head)
        if head is None or head.has_arrived or len(head.holders) != 1:
            return []
        (late,) = head.holders
        others = [loader for loader in self._members if loader != late]
        if not others:
            return []
        owed = [
            serial
            for serial in sorted(self._members[late].open)
            if len(self._entries[serial].holders) < MOST_HOLDERS
        ]
        leases = [self._lease(serial, max(others, key=self._room)) for serial in owed]
        self.counts.reissued += len(leases)
        return leases

    def arrived(self, loader: int, serial: int) -> bool:
        """A batch came; False where it is a duplicate or forgotten, and must not be used.

        ProtocolError where it was never leased to this loader.
        """
        if serial >= self._next_serial or loader not in self._members:
            raise ProtocolError(f"a loader sent batch {serial}, which was not leased to it")
        entry = self._entries.get(serial)
        if entry is None:
            self.counts.duplicates += 1
            return False
        if loader not in entry.holders:
            raise ProtocolError(f"a loader sent batch {serial}, which was not leased to it")
        self._members[loader].open.discard(serial)
        entry.holders.discard(loader)
        if entry.has_arrived:
            self.counts.duplicates += 1
            return False
        entry.has_arrived = True
        self.counts.arrived += 1
        return True

    def holders(self) -> set[int]:
        """The loaders that owe the head."""
        entry = self._entries.get(self._head)
        return set() if entry is None else set(entry.holders)

    @property
    def num_open(self) -> int:
        """Open leases of all loaders."""
        return sum(len(member.open) for member in self._members.values())

    # ---- inside ----

    def _roomiest(self) -> int | None:
        loader = max(self._members, key=self._room, default=None)
        return loader if loader is not None and self._room(loader) > 0 else None

    def _room(self, loader: int) -> int:
        member = self._members[loader]
        return member.capacity - len(member.open)

    def _take(self) -> int | None:
        """The lowest serial that nobody makes."""
        return heapq.heappop(self._waiting) if self._waiting else self._extend()

    def _extend(self) -> int | None:
        """The next work of the sequence, entered; None at its end, or far enough ahead of the consumer."""
        if self._is_exhausted or self._next_serial - self._head >= self._max_ahead:
            return None
        work = next(self._works, None)
        if work is None:
            self._is_exhausted = True
            return None
        serial = self._next_serial
        self._entries[serial] = _Entry(work)
        self._next_serial += 1
        return serial

    def _lease(self, serial: int, loader: int) -> Lease:
        entry = self._entries[serial]
        entry.holders.add(loader)
        self._members[loader].open.add(serial)
        self.counts.leased += 1
        return Lease(loader, serial, entry.work)
