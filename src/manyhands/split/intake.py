"""A trainer's job: the shell around ledger and windows, between the loaders' streams and the trainer's loop.

::

    loaders' streams (their threads)              trainer's thread
      joined, arrived, kept, left  ─► ledger ◄─  batches(): head, consumed
                                        │
                  Make, Used, Forget  ◄─┘   said after the lock is released

Batches go to the trainer in the order of need, whoever made them. Knows no socket: a `Seat` can be spoken to, and
that is all.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from torch import Tensor

from manyhands.clock import Clock
from manyhands.errors import BadSample, ManyhandsError, ProtocolError, RunFailed, Unreachable
from manyhands.observe.waiting import Waiting
from manyhands.split.feed import Figures
from manyhands.split.jobs import Fault, Made, Phase, Work
from manyhands.split.ledger import Lease, Ledger
from manyhands.split.leftout import LeftOut
from manyhands.split.messages import MAX_BATCH_SAMPLES, Batch, Failed, Forget, Hello, Make, Need, Over, Rows
from manyhands.split.narrow import check_widths
from manyhands.split.plan import Plan
from manyhands.split.seats import Bounds, Seat
from manyhands.split.staging import Staging
from manyhands.split.terms import Terms
from manyhands.tensors import MAX_FRAME_BYTES, Frame, encode

LATE_SECONDS: Final = 1.0
LATE_FACTOR: Final = 3.0
"""A batch for which the trainer waits so many times longer than any took before is leased a second time."""
FAREWELL_SECONDS: Final = 10.0
"""How long a trainer that was stopped waits until its loaders have heard it; others wait as long as they are there."""
_TICK_SECONDS: Final = 0.25
MOST_UNKEPT_BYTES: Final = 64 << 20

_Post = tuple[Seat, msgspec.Struct]


@dataclass
class _Arrival:
    made: Made
    seat: Seat
    num_bytes: int


class Intake:
    """See `feed.Job`; `joined` and the like are for the streams."""

    def __init__(
        self,
        opener: Hello,
        plan: Plan,
        bounds: Bounds,
        clock: Clock,
        whom: Callable[[], str],
        staging: Staging | None = None,
    ) -> None:
        self.terms: Terms = opener.terms
        self.wants_weights = opener.has_weights
        """Whether the first loader's weights are still to come."""
        self.weights: dict[str, Tensor] | None = None
        self._starts = opener.starts
        self._bounds = bounds
        self._clock = clock
        self._whom = whom
        self._staging = staging
        self._waiting = Waiting(clock)
        self._plan = plan
        self._ledger = Ledger(bounds.queue_size)
        self._turn = threading.Condition()
        self._seats: dict[int, Seat] = {}
        self._opener: Seat | None = None
        self._arrivals: dict[int, _Arrival] = {}
        self._failure: ManyhandsError | None = None
        self._is_stopped = False
        self._needed: tuple[int, frozenset[int]] = -1, frozenset()
        self._is_over = False
        self._has_begun = False
        self._received_bytes = 0
        self._largest_bytes = 0
        self._leased_at: dict[int, float] = {}
        self._slowest_seconds: float | None = None
        self._left_out = LeftOut()
        self._unkept: dict[int, int] = {}
        self._covered: tuple[Phase, int, int] | None = None

    # ---- the trainer's side: feed.Job ----

    def num_batches(self, phase: Phase) -> int:
        """See `feed.Job`."""
        return self._plan.num_batches(phase)

    def start_of(self, phase: Phase) -> int:
        """See `feed.Job`."""
        return self._starts.get(phase, 0)

    def batches(self, phase: Phase, epoch: int, start: int = 0) -> Iterator[Made]:
        """See `feed.Job`."""
        self._plan.check(phase, epoch, start)
        if not self._seek(phase, epoch, start):
            return
        while self._is_at(phase, epoch):
            following = self._next()
            if following is None:
                return
            serial, made = following
            yield self._staged(serial, made)
            del following, made  # its memory may be used again as soon as the trainer has let go of it
            self._consume(serial)

    def covered(self, phase: Phase, epoch: int, sequence: int) -> None:
        """See `feed.Job`."""
        self._covered = phase, epoch, sequence

    @property
    def covered_until(self) -> tuple[Phase, int, int] | None:
        """The first batch that the newest checkpoint does not hold; None without one."""
        return self._covered

    def send_rows(self, sequence: int, columns: Mapping[str, Any]) -> None:
        """See `feed.Job`."""
        body = encode(dict(columns), checks_body=False)
        with self._turn:
            self._turn.wait_for(lambda: self._has_room_for_rows() or not self._opener_is_here())
            if not self._opener_is_here():
                raise self._failure or Unreachable(
                    "the loader that asked for this inference has gone; what it has written stays, and it goes on "
                    "there when it is started again with the same output="
                )
            assert self._opener is not None
            self._unkept[sequence] = body.num_bytes
            channel = self._opener.channel
        channel.send(Rows(sequence), body)

    def figures(self) -> Figures:
        """See `feed.Job`."""
        with self._turn:
            return Figures(
                len(self._seats),
                self._received_bytes,
                sum(seat.window.window_bytes for seat in self._seats.values()),
                sum(arrival.num_bytes for arrival in self._arrivals.values()),
                len(self._arrivals),
                self._ledger.counts.reissued,
                self._ledger.counts.duplicates,
            )

    def finish(self, result: Mapping[str, Any], weights: Mapping[str, Tensor] | None = None) -> None:
        """See `feed.Job`."""
        tree: dict[str, Any] = {"result": dict(result), "weights": None}
        if weights is not None and sum(tensor.nbytes for tensor in weights.values()) < MAX_FRAME_BYTES // 2:
            tree["weights"] = {name: tensor.detach() for name, tensor in weights.items()}
        self._end(Over(), encode(tree, checks_body=False))

    def fail(self, error: ManyhandsError) -> None:
        """See `feed.Job`."""
        self._end(Over(str(error)[:1000] or "the trainer failed", type(error).__name__), None)

    def loaders(self) -> list[str]:
        """Names of the loaders that are here."""
        with self._turn:
            return [seat.name for seat in self._seats.values()]

    def stop(self) -> None:
        """Let `batches` end; from any thread."""
        with self._turn:
            self._is_stopped = True
            self._turn.notify_all()

    # ---- the loaders' side ----

    @property
    def is_over(self) -> bool:
        """Whether nobody may join any more."""
        return self._is_over

    @property
    def is_ready(self) -> bool:
        """Whether it can begin: a loader has its seat, and gave its weights where it has some."""
        return bool(self._seats) and not self.wants_weights

    @property
    def is_abandoned(self) -> bool:
        """Whether its loaders have left before it began."""
        return not self._seats and not self._has_begun

    def take_weights(self, seat: Seat, weights: dict[str, Tensor]) -> None:
        """The weights that the model is to have; the first that come count."""
        with self._turn:
            if self.wants_weights:
                self.weights, self.wants_weights = weights, False

    def take_seat(self, seat: Seat) -> None:
        """A loader that answered the welcome: it is leased to from now on."""
        with self._turn:
            self._seats[seat.number] = seat
            if self._opener is None:
                self._opener = seat
            self._ledger.join(seat.number, seat.room(self._largest_bytes))
            posts = self._granted()
            self._waiting.over()
            self._turn.notify_all()
        _say(posts)

    def leave(self, seat: Seat) -> None:
        """A loader has gone: others make what it was leased."""
        with self._turn:
            if self._seats.pop(seat.number, None) is None:
                return
            self._ledger.leave(seat.number)
            posts = self._granted()
            self._turn.notify_all()
        _say(posts)

    def may_send(self, seat: Seat, num_bytes: int) -> None:
        """Before a batch's memory is taken: ProtocolError where the loader has no credit for it."""
        with self._turn:
            seat.window.check(num_bytes)

    def arrived(self, seat: Seat, batch: Batch, tree: Any, num_bytes: int) -> None:
        """A whole batch is here."""
        with self._turn:
            if seat.number not in self._seats:
                return
            seat.window.arrived(num_bytes, self._clock.monotonic())
            self._received_bytes += num_bytes
            # First of all: what is wrong must stay leased, so that its loader's end gives it to another one.
            made = self._checked(batch, tree)
            is_new = self._ledger.arrived(seat.number, batch.serial)
            if made is not None and is_new:
                self._largest_bytes = max(self._largest_bytes, num_bytes)
                seconds = self._clock.monotonic() - self._leased_at.pop(batch.serial)
                self._slowest_seconds = max(seconds, 0.9 * (self._slowest_seconds or 0.0))
                self._arrivals[batch.serial] = _Arrival(made, seat, num_bytes)
                self._left_out.add(seat.name, made)
                self._ledger.resize(seat.number, seat.room(self._largest_bytes))
            else:
                seat.done(batch.serial, num_bytes)
            posts = [*self._granted(), *self._acks(seat)]
            self._turn.notify_all()
        _say(posts)

    def kept(self, seat: Seat, sequence: int) -> None:
        """Rows up to this batch are safe."""
        with self._turn:
            if seat is not self._opener:
                raise ProtocolError("a loader acknowledges rows that were not sent to it")
            for done in [at for at in self._unkept if at <= sequence]:
                del self._unkept[done]
            self._turn.notify_all()

    def failed(self, seat: Seat, failed: Failed) -> None:
        """A loader says that the job cannot go on."""
        sentence = f"the loader {seat.name} stopped the job: {failed.sentence}"
        with self._turn:
            self._failure = RunFailed(sentence) if failed.index is None else BadSample(sentence, failed.index)
            self._turn.notify_all()

    # ---- inside: the lock is held by whoever calls, unless it says otherwise ----

    def _seek(self, phase: Phase, epoch: int, start: int) -> bool:
        """Be at this position; False where no batch is left of the leg. Takes the lock."""
        wanted = next(self._plan.works(phase, epoch, start), None)
        if wanted is None:
            return False
        with self._turn:
            self._has_begun = True
            if self._ledger.work_at_head() == wanted:
                return True
            below = self._ledger.seek(self._plan.works_from(phase, epoch, start))
            for arrival in self._arrivals.values():
                arrival.seat.window.consumed(arrival.num_bytes)
            self._arrivals.clear()
            self._leased_at.clear()
            if self._staging is not None:
                self._staging.forget()
            posts: list[_Post] = [(seat, Forget(below)) for seat in self._seats.values()]
            for seat in self._seats.values():
                seat.forget()
            posts += self._granted()
        _say(posts)
        return True

    def _is_at(self, phase: Phase, epoch: int) -> bool:
        with self._turn:
            work = self._ledger.work_at_head()
        return work is not None and (work.phase, work.epoch) == (phase, epoch)

    def _next(self) -> tuple[int, Made] | None:
        """The batch at the head, with its serial number; None once stopped. Takes the lock."""
        since = self._clock.monotonic()
        while True:
            with self._turn:
                if (made := self._ready()) is not None:
                    return self._ledger.head, made
                if self._is_stopped:
                    return None
                posts = [post for seat in self._seats.values() for post in self._acks(seat, every=True)]
                posts += [*self._needs(), *self._patient(since)]
            _say(posts)
            with self._turn:
                if self._ready() is None and not self._is_stopped:
                    self._turn.wait(_TICK_SECONDS)

    def _staged(self, serial: int, made: Made) -> Made:
        """The batch on the device where that takes a copy; the copy of the next one begins."""
        if self._staging is None:
            return made
        with self._turn:
            following = self._arrivals.get(serial + 1)
        staged = self._staging.take(serial, made)
        if following is not None:
            self._staging.begin(serial + 1, following.made)
        return staged

    def _ready(self) -> Made | None:
        """The batch at the head where it is here; raises what stops the job."""
        if self._failure is not None:
            raise self._failure
        arrival = self._arrivals.get(self._ledger.head)
        return None if arrival is None else arrival.made

    def _needs(self) -> list[_Post]:
        """Whoever owes the head may send it, also where later batches fill the window."""
        head, (asked_for, asked) = self._ledger.head, self._needed
        if asked_for != head:
            asked = frozenset()
        full = [
            number for number in self._ledger.holders() - asked if self._seats[number].window.is_nearly_full
        ]
        self._needed = head, asked.union(full)
        return [(self._seats[number], Need(head)) for number in full]

    def _patient(self, since: float) -> list[_Post]:
        """While the trainer waits: ask other loaders for what is late, or say that there is none."""
        if self._seats:
            slowest = self._slowest_seconds
            if slowest is None:
                return []
            limit = max(LATE_SECONDS, LATE_FACTOR * slowest)
            return self._makes(self._ledger.hedge()) if self._clock.monotonic() - since > limit else []
        self._waiting.say(f"waiting for {self._whom()}")
        self._waiting.check(self._bounds.wait_seconds, f"no loader is left: {self._whom()}")
        return []

    def _consume(self, serial: int) -> None:
        """Batch `serial`, which was at the head, is used. Takes the lock."""
        with self._turn:
            if self._ledger.head != serial or serial not in self._arrivals:
                return  # the trainer asked for another position meanwhile
            self._ledger.consumed()
            arrival = self._arrivals.pop(serial)
            seat = arrival.seat
            seat.done(serial, arrival.num_bytes)
            posts = [*self._granted(), *self._acks(seat)]
        _say(posts)

    def _granted(self) -> list[_Post]:
        return self._makes(self._ledger.grant())

    def _makes(self, leases: list[Lease]) -> list[_Post]:
        by_loader: dict[int, list[Lease]] = {}
        now = self._clock.monotonic()
        for lease in leases:
            self._leased_at.setdefault(lease.serial, now)
            by_loader.setdefault(lease.loader, []).append(lease)
        return [(self._seats[loader], make) for loader, mine in by_loader.items() for make in _messages(mine)]

    def _acks(self, seat: Seat, *, every: bool = False) -> list[_Post]:
        used = seat.used(every=every) if seat.number in self._seats else None
        return [] if used is None else [(seat, used)]

    def _checked(self, batch: Batch, tree: Any) -> Made | None:
        """What a loader says that it made; None where nobody needs it any more."""
        work = self._ledger.work(batch.serial)
        if work is None:
            return None
        faults = tuple(Fault(bad.index, bad.error) for bad in batch.faults)
        bad = {fault.index for fault in faults}
        # A loader is believed in what its samples hold, and not in which ones it was asked for.
        expected = tuple(index for index in work.indices if index not in bad)
        if batch.indices != expected:
            raise ProtocolError(
                f"a loader sent other samples than batch {work.sequence} of epoch {work.epoch} asks for: is its "
                "dataset another one?"
            )
        if (tree is None) != (not expected):
            raise ProtocolError(f"a loader says that it sent {len(expected)} samples, and sent {_told(tree)}")
        check_widths(tree, batch.widths)
        return Made(work, tree, batch.indices, faults, batch.widths)

    def _opener_is_here(self) -> bool:
        return self._opener is not None and self._opener.number in self._seats and self._failure is None

    def _has_room_for_rows(self) -> bool:
        return sum(self._unkept.values()) < MOST_UNKEPT_BYTES

    def _end(self, over: Over, body: Frame | None) -> None:
        """Tell every loader, and wait until it has heard it. Takes the lock."""
        with self._turn:
            self._is_over = True
            seats = list(self._seats.values())
        for seat in seats:
            with suppress(Unreachable):  # one that has gone meanwhile
                seat.channel.send(over, body)
        since = self._clock.monotonic()
        with self._turn:
            while self._seats:
                self._turn.wait(_TICK_SECONDS)
                if self._is_stopped and self._clock.monotonic() - since > FAREWELL_SECONDS:
                    return


def _messages(leases: list[Lease]) -> Iterator[Make]:
    """The leases of one loader, with so many indices in each message as fit."""
    batch: list[tuple[int, Work]] = []
    num_indices = 0
    for lease in leases:
        if batch and num_indices + len(lease.work.indices) > MAX_BATCH_SAMPLES:
            yield Make(tuple(batch))
            batch, num_indices = [], 0
        batch.append((lease.serial, lease.work))
        num_indices += len(lease.work.indices)
    if batch:
        yield Make(tuple(batch))


def _told(tree: Any) -> str:
    return "none" if tree is None else "a batch"


def _say(posts: list[_Post]) -> None:
    for seat, message in posts:
        with suppress(Unreachable):  # its end is heard of by whoever reads from it
            seat.channel.send(message)
