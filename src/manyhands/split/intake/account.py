"""One job's account at the trainer: who has a seat, what it was leased, what has come, what is needed next. Pure.

::

    sit, leave, arrived, seek, consumed, due ─► Account ─► posts: Make, Used, Need, Forget
                                                   └─ ledger    which batch is with whom
                                                   └─ windows   how much of whose may lie here

Batches go to the trainer in the order of need, whoever made them. No lock, clock or thread: the time is an argument,
and what is to be said comes back, for the caller to say.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from manyhands.split.feed import Figures
from manyhands.split.intake.checking import checked
from manyhands.split.intake.lateness import Lateness
from manyhands.split.intake.leftout import LeftOut
from manyhands.split.intake.posts import Post, makes
from manyhands.split.jobs import Made, Work
from manyhands.split.ledger import Lease, Ledger
from manyhands.split.messages import Batch, Forget, Need
from manyhands.split.seats import Seat


@dataclass
class _Arrival:
    made: Made
    seat: Seat
    num_bytes: int


class Account:
    """The ledger of one job with its loaders' seats and windows, and the batches that lie here."""

    def __init__(self, max_ahead: int) -> None:
        self.seats: dict[int, Seat] = {}
        self._ledger = Ledger(max_ahead)
        self._arrivals: dict[int, _Arrival] = {}
        self._lateness = Lateness()
        self._left_out = LeftOut()
        self._needed: tuple[int, frozenset[int]] = -1, frozenset()
        self._received_bytes = 0
        self._largest_bytes = 0

    # ---- loaders ----

    def sit(self, seat: Seat, now: float) -> list[Post]:
        """A loader is there, and is leased to."""
        self.seats[seat.number] = seat
        self._ledger.join(seat.number, seat.room(self._largest_bytes))
        return self._granted(now)

    def leave(self, seat: Seat, now: float) -> list[Post]:
        """A loader has gone: others make what it was leased."""
        if self.seats.pop(seat.number, None) is None:
            return []
        self._ledger.leave(seat.number)
        return self._granted(now)

    def arrived(self, seat: Seat, batch: Batch, tree: Any, num_bytes: int, now: float) -> list[Post]:
        """A whole batch came. ProtocolError where it is not what this loader was asked for."""
        if seat.number not in self.seats:
            return []
        seat.window.arrived(num_bytes, now)
        self._received_bytes += num_bytes
        # First of all: what is wrong must stay leased, so that its loader's end gives it to another one.
        work = self._ledger.work(batch.serial)
        made = None if work is None else checked(work, batch, tree)
        is_new = self._ledger.arrived(seat.number, batch.serial)
        if made is not None and is_new:
            self._largest_bytes = max(self._largest_bytes, num_bytes)
            self._lateness.came(batch.serial, now)
            self._arrivals[batch.serial] = _Arrival(made, seat, num_bytes)
            self._left_out.add(seat.name, made)
            self._ledger.resize(seat.number, seat.room(self._largest_bytes))
        else:
            seat.done(batch.serial, num_bytes)
        return [*self._granted(now), *self._acks(seat)]

    # ---- the trainer ----

    def work_at_head(self) -> Work | None:
        """What is needed next; None where the sequence has ended."""
        return self._ledger.work_at_head()

    @property
    def head(self) -> int:
        """The serial number of what is needed next."""
        return self._ledger.head

    def made(self, serial: int) -> Made | None:
        """Batch `serial`, where it lies here."""
        arrival = self._arrivals.get(serial)
        return None if arrival is None else arrival.made

    def seek(self, works: Iterator[Work], now: float) -> list[Post]:
        """Lease these from now on; whatever was leased before, or lies here, is void."""
        below = self._ledger.seek(works)
        for arrival in self._arrivals.values():
            arrival.seat.window.consumed(arrival.num_bytes)
        self._arrivals.clear()
        self._lateness.forget()
        posts: list[Post] = [(seat, Forget(below)) for seat in self.seats.values()]
        for seat in self.seats.values():
            seat.forget()
        return [*posts, *self._granted(now)]

    def consumed(self, serial: int, now: float) -> list[Post]:
        """Batch `serial`, which was at the head, is used; nothing where the trainer is elsewhere by now."""
        if self._ledger.head != serial or serial not in self._arrivals:
            return []
        self._ledger.consumed()
        arrival = self._arrivals.pop(serial)
        arrival.seat.done(serial, arrival.num_bytes)
        return [*self._granted(now), *self._acks(arrival.seat)]

    def due(self, waited_seconds: float, now: float) -> list[Post]:
        """What brings the head closer for which the trainer has waited so long."""
        acks = [post for seat in self.seats.values() for post in self._acks(seat, every=True)]
        late = self._ledger.hedge() if self._lateness.is_late(waited_seconds) else []
        return [*acks, *self._needs(), *self._makes(late, now)]

    def figures(self) -> Figures:
        """See `feed.Job`."""
        return Figures(
            len(self.seats),
            self._received_bytes,
            sum(seat.window.window_bytes for seat in self.seats.values()),
            sum(arrival.num_bytes for arrival in self._arrivals.values()),
            len(self._arrivals),
            self._ledger.counts.reissued,
            self._ledger.counts.duplicates,
        )

    # ---- inside ----

    def _needs(self) -> list[Post]:
        """Whoever owes the head may send it, also where later batches fill the window; said once."""
        head, (asked_for, asked) = self._ledger.head, self._needed
        if asked_for != head:
            asked = frozenset()
        full = [
            number for number in self._ledger.holders() - asked if self.seats[number].window.is_nearly_full
        ]
        self._needed = head, asked.union(full)
        return [(self.seats[number], Need(head)) for number in full]

    def _granted(self, now: float) -> list[Post]:
        return self._makes(self._ledger.grant(), now)

    def _makes(self, leases: list[Lease], now: float) -> list[Post]:
        for lease in leases:
            self._lateness.leased(lease.serial, now)
        return makes(leases, self.seats)

    def _acks(self, seat: Seat, *, every: bool = False) -> list[Post]:
        used = seat.used(every=every) if seat.number in self.seats else None
        return [] if used is None else [(seat, used)]
