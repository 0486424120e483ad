"""A trainer's way through its batches: from one position on, each once, waiting for what is not here yet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from manyhands.observe.waiting import Waiting
from manyhands.split.intake.desk import Desk
from manyhands.split.intake.patience import Patience
from manyhands.split.jobs import Made, Phase
from manyhands.split.plan import Plan
from manyhands.split.staging import Staging

TICK_SECONDS: Final = 0.25


class Walk:
    """Takes the batches of `plan` from the account on `desk`; for one thread, the trainer's."""

    def __init__(
        self,
        plan: Plan,
        desk: Desk,
        patience: Patience,
        staging: Staging | None,
    ) -> None:
        self._plan = plan
        self._desk = desk
        self._patience = patience
        self._staging = staging
        self.has_begun = False
        """Whether a batch was asked for."""

    def batches(self, phase: Phase, epoch: int, start: int) -> Iterator[Made]:
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
            with self._desk.posting() as posts:
                posts += self._desk.account.consumed(serial, self._desk.now())

    def _seek(self, phase: Phase, epoch: int, start: int) -> bool:
        """Be at this position; False where no batch is left of the leg."""
        wanted = next(self._plan.works(phase, epoch, start), None)
        if wanted is None:
            return False
        with self._desk.posting() as posts:
            self.has_begun = True
            if self._desk.account.work_at_head() != wanted:
                if self._staging is not None:
                    self._staging.forget()
                posts += self._desk.account.seek(self._plan.works_from(phase, epoch, start), self._desk.now())
        return True

    def _is_at(self, phase: Phase, epoch: int) -> bool:
        with self._desk.turn:
            work = self._desk.account.work_at_head()
        return work is not None and (work.phase, work.epoch) == (phase, epoch)

    def _next(self) -> tuple[int, Made] | None:
        """The batch at the head, with its serial number; None once stopped."""
        desk, since = self._desk, self._desk.now()
        waiting = Waiting(desk.clock)
        while True:
            with desk.posting() as posts:
                if (made := self._ready()) is not None:
                    return desk.account.head, made
                if desk.is_stopped:
                    return None
                posts += desk.account.due(desk.now() - since, desk.now())
                self._be_patient(waiting)
            with desk.turn:
                if self._ready() is None and not desk.is_stopped:
                    desk.turn.wait(TICK_SECONDS)

    def _ready(self) -> Made | None:
        """The batch at the head where it is here; raises what stops the job. The lock is held."""
        if self._desk.failure is not None:
            raise self._desk.failure
        return self._desk.account.made(self._desk.account.head)

    def _be_patient(self, waiting: Waiting) -> None:
        """Unreachable where there has been no loader for too long. The lock is held."""
        if self._desk.account.seats:
            waiting.over()
        else:
            self._patience(waiting)

    def _staged(self, serial: int, made: Made) -> Made:
        """The batch on the device where that takes a copy; the copy of the next one begins."""
        if self._staging is None:
            return made
        with self._desk.turn:
            following = self._desk.account.made(serial + 1)
        staged = self._staging.take(serial, made)
        if following is not None:
            self._staging.begin(serial + 1, following)
        return staged
