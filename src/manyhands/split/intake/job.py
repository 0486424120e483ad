"""A trainer's job: the shell around its account, between the loaders' streams and the trainer's loop.

::

    loaders' streams (their threads)              trainer's thread
      joined, arrived, kept, left  ─► account ◄─  batches(): head, consumed
                                        │
                  Make, Used, Forget  ◄─┘   said after the lock is released

Here are the lock, the clock and the waiting; which batch is needed, and from whom, is `account`'s. Knows no socket: a
`Seat` can be spoken to, and that is all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from torch import Tensor

from manyhands.clock import Clock
from manyhands.errors import BadSample, ManyhandsError, ProtocolError, RunFailed
from manyhands.observe.waiting import tell
from manyhands.split.feed import Figures
from manyhands.split.intake.absent import Absent
from manyhands.split.intake.account import Account
from manyhands.split.intake.desk import Desk
from manyhands.split.intake.farewell import Ending, Farewell
from manyhands.split.intake.patience import asker_gone, patience
from manyhands.split.intake.unkept import Unkept
from manyhands.split.intake.walk import TICK_SECONDS, Walk
from manyhands.split.jobs import Made, Phase
from manyhands.split.messages import Batch, Failed, Hello, Over, Rows
from manyhands.split.plan import Plan
from manyhands.split.seats import Bounds, Seat
from manyhands.split.staging import Staging
from manyhands.split.terms import Terms
from manyhands.tensors import encode

FAREWELL_SECONDS: Final = 10.0
"""How long a trainer that was stopped waits until its loaders have heard it; others wait as long as they are there."""


class Intake:
    """See `feed.Job`; `take_seat` and what follows it are for the streams."""

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
        self._plan = plan
        self._desk = Desk(Account(bounds.queue_size), clock)
        waiting = patience(self.terms.mode, whom, bounds.wait_seconds)
        self._walk = Walk(plan, self._desk, waiting, staging)
        self._unkept = Unkept()
        self._opener: Seat | None = None
        self._absent = Absent()
        self._farewell: Farewell | None = None
        self._ended_at = 0.0
        self._errands: set[str] = set()

    # ---- the trainer's side: feed.Job ----

    def num_batches(self, phase: Phase) -> int:
        """See `feed.Job`."""
        return self._plan.num_batches(phase)

    def start_of(self, phase: Phase) -> int:
        """See `feed.Job`."""
        return self._starts.get(phase, 0)

    def batches(self, phase: Phase, epoch: int, start: int = 0) -> Iterator[Made]:
        """See `feed.Job`."""
        return self._walk.batches(phase, epoch, start)

    def send_rows(self, sequence: int, columns: Mapping[str, Any]) -> None:
        """See `feed.Job`."""
        body = encode(dict(columns), checks_body=False)
        with self._desk.turn:
            self._desk.turn.wait_for(lambda: self._unkept.has_room or not self._opener_is_here())
            if not self._opener_is_here():
                raise self._desk.failure or asker_gone(self.terms.mode)
            assert self._opener is not None
            self._unkept.sent(sequence, body.num_bytes)
            channel = self._opener.channel
        channel.send(Rows(sequence), body)

    def figures(self) -> Figures:
        """See `feed.Job`."""
        with self._desk.turn:
            return self._desk.account.figures()

    def finish(self, result: Mapping[str, Any], weights: Mapping[str, Tensor] | None = None) -> None:
        """See `feed.Job`."""
        self._end(Farewell.well(result, weights))

    def fail(self, error: ManyhandsError) -> None:
        """See `feed.Job`."""
        if self.terms.mode != "training" and not self._desk.account.seats:
            self._errands.clear()  # who asked and was lost may ask again, and is answered anew
        self._end(Farewell.ill(error))

    def loaders(self) -> list[str]:
        """Names of the loaders that are here."""
        with self._desk.turn:
            return [seat.name for seat in self._desk.account.seats.values()]

    def stop(self) -> None:
        """Let `batches` end; from any thread."""
        with self._desk.posting():
            self._desk.is_stopped = True

    # ---- the loaders' side ----

    @property
    def is_over(self) -> bool:
        """Whether nobody may join any more."""
        return self._farewell is not None

    @property
    def is_ready(self) -> bool:
        """Whether it can begin: a loader has its seat, and gave its weights where it has some."""
        return bool(self._desk.account.seats) and not self.wants_weights

    @property
    def is_abandoned(self) -> bool:
        """Whether its loaders have left before it began."""
        return not self._desk.account.seats and not self._walk.has_begun

    def take_weights(self, seat: Seat, weights: dict[str, Tensor]) -> None:
        """The weights that the model is to have; the first that come count."""
        with self._desk.turn:
            if self.wants_weights:
                self.weights, self.wants_weights = weights, False

    def take_seat(self, seat: Seat) -> None:
        """A loader that answered the welcome: it is leased to from now on."""
        with self._desk.posting() as posts:
            if self._opener is None:
                self._opener = seat
            self._errands.add(seat.errand)
            self._absent.back(seat.errand)
            posts += self._desk.account.sit(seat, self._desk.now())

    def leave(self, seat: Seat) -> None:
        """A loader's stream is over: others make what it was leased."""
        with self._desk.posting() as posts:
            if seat.errand and seat.number in self._desk.account.seats and not self.is_over:
                self._absent.gone(seat.errand, self._desk.now())
            posts += self._desk.account.leave(seat, self._desk.now())

    def may_send(self, seat: Seat, num_bytes: int) -> None:
        """Before a batch's memory is taken: ProtocolError where the loader has no credit for it."""
        with self._desk.turn:
            seat.window.check(num_bytes)

    def arrived(self, seat: Seat, batch: Batch, tree: Any, num_bytes: int) -> None:
        """A whole batch is here."""
        with self._desk.posting() as posts:
            posts += self._desk.account.arrived(seat, batch, tree, num_bytes, self._desk.now())

    def kept(self, seat: Seat, sequence: int) -> None:
        """Rows up to this batch are safe."""
        with self._desk.posting():
            if seat is not self._opener:
                raise ProtocolError("a loader acknowledges rows that were not sent to it")
            self._unkept.kept(sequence)

    def failed(self, seat: Seat, failed: Failed) -> None:
        """A loader says that the job cannot go on."""
        sentence = f"the loader {seat.name} stopped the job: {failed.sentence}"
        error = RunFailed(sentence) if failed.index is None else BadSample(sentence, failed.index)
        with self._desk.posting():
            self._desk.failure = error

    def resign(self, seat: Seat, sentence: str) -> None:
        """A loader goes for good; where it must, and none is left, the job ends with what it says."""
        with self._desk.posting() as posts:
            posts += self._desk.account.leave(seat, self._desk.now())
            if sentence and not self._desk.account.seats:
                self._desk.failure = RunFailed(f"the last loader, {seat.name}, cannot go on: {sentence}")
        tell(f"the loader {seat.name} has left{': ' if sentence else ''}{sentence}")
        Farewell(Over("this loader has left")).say(seat.channel)

    def is_for(self, errand: str) -> bool:
        """Whether a loader of this call has a seat here, or had one before its stream broke."""
        return bool(errand) and errand in self._errands

    def ending(self) -> Ending:
        """What to keep of it, for whoever comes later still."""
        assert self._farewell is not None
        return Ending(frozenset(self._errands) - {""}, self._farewell.without_weights())

    @property
    def is_awaited(self) -> bool:
        """Whether a loader may be on its way back that has not heard the end."""
        with self._desk.turn:
            return self.is_over and self._absent.is_expected(self._ended_at, self._desk.now())

    @property
    def farewell(self) -> Farewell | None:
        """How it ended, as its loaders were told."""
        return self._farewell

    def heard(self, errand: str) -> None:
        """A loader of this call, which was away when the job ended, knows how."""
        with self._desk.posting():
            self._absent.back(errand)

    # ---- inside ----

    def _opener_is_here(self) -> bool:
        """The lock is held."""
        seats = self._desk.account.seats
        return self._opener is not None and self._opener.number in seats and self._desk.failure is None

    def _end(self, farewell: Farewell) -> None:
        """Tell every loader, and wait until it has heard it."""
        desk, since = self._desk, self._desk.now()
        with desk.turn:
            self._farewell, self._ended_at = farewell, since
            seats = list(desk.account.seats.values())
        for seat in seats:
            farewell.say(seat.channel)
        with desk.turn:
            while desk.account.seats:
                desk.turn.wait(TICK_SECONDS)
                if desk.is_stopped and desk.now() - since > FAREWELL_SECONDS:
                    return
