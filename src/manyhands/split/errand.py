"""One job from the loader's side, from its doors to its end: to one trainer, or to several that are its ranks.

The caller's thread waits here for what deliveries put into the inbox; everything else happens on theirs.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from manyhands.clock import Clock
from manyhands.errors import BadSample, ManyhandsError, Unreachable, UsageError
from manyhands.observe.waiting import Waiting, tell
from manyhands.split import calling
from manyhands.split.delivery import Assignment, Delivery
from manyhands.split.delivery.events import (
    CannotGoOn,
    Inbox,
    JobOver,
    RowsCame,
    Stopped,
    StreamLost,
    Welcomed,
)
from manyhands.split.doors import Door, ListeningDoor
from manyhands.split.jobs import Phase
from manyhands.split.making import start_maker
from manyhands.split.making.starting import NumWorkers
from manyhands.split.recipe import Recipe
from manyhands.split.workshop import Workshop

FAREWELL_SECONDS: Final = 10.0
"""How long the trainers may take to hear that this loader cannot go on."""
STOP_SECONDS: Final = 2.0
"""... and that it was stopped."""
_TICK_SECONDS: Final = 0.5

OnRows = Callable[[int, int, dict[str, Any]], int]
"""Called with (sequence, samples, columns) for each batch of an inference; which one is the first it does not have."""


@dataclass
class Errand:
    """Feeds the trainers behind `doors` until each says that the job is over; `run` may be called once."""

    recipes: Mapping[Phase, Recipe]
    num_workers: NumWorkers
    doors: Sequence[Door]
    assignments: Sequence[Assignment]
    clock: Clock
    wait_seconds: float | None = None
    on_rows: OnRows | None = None
    _inbox: Inbox = field(default_factory=queue.SimpleQueue)
    _live: dict[int, Delivery] = field(default_factory=dict)
    _over: dict[int, JobOver] = field(default_factory=dict)

    def run(self) -> list[JobOver] | None:
        """How the job ended at each trainer, in their order; None after `stop`.

        Raises:
            Unreachable: no trainer came, or it was away for longer than the patience of the settings.
            Refused: a trainer says no, and why.
            BadSample, RunFailed, UsageError: the data, or its workers; the trainers are told.

        """
        workshop = Workshop(start_maker(self.recipes, self.num_workers), self._cannot_go_on)
        workshop.start()
        try:
            for door, assignment in zip(self.doors, self.assignments, strict=True):
                door.start(self._guests(assignment, workshop), self._cannot_go_on)
                if isinstance(door, ListeningDoor):
                    calling.announce(door)
            return self._attend()
        finally:
            for door in self.doors:
                door.close()
            workshop.close()

    def stop(self) -> None:
        """Go; what is leased here is for others. From any thread, at once."""
        self._inbox.put(Stopped())

    def _guests(self, assignment: Assignment, workshop: Workshop) -> Callable[[], Delivery]:
        def new_guest() -> Delivery:
            delivery = Delivery(assignment, workshop, self._inbox)
            self._live[assignment.trainer] = delivery
            return delivery

        return new_guest

    def _cannot_go_on(self, error: ManyhandsError) -> None:
        # Every loader has the data; its own are what it reaches, and the workers that it started.
        is_only_here = not isinstance(error, UsageError | BadSample)
        self._inbox.put(CannotGoOn(error, is_only_here))

    def _attend(self) -> list[JobOver] | None:
        waiting, limit = Waiting(self.clock), self.wait_seconds
        welcomed, needed = 0, len(self.assignments)
        while len(self._over) < needed:
            try:
                event = self._inbox.get(timeout=_TICK_SECONDS)
            except queue.Empty:
                if welcomed < needed - len(self._over):
                    waiting.say(f"waiting for {self._whom()}")
                    waiting.check(limit, f"no trainer has taken this loader in: {self._whom()}")
                continue
            match event:
                case Welcomed():
                    welcomed += 1
                    limit = None  # from now on it is the door's patience that counts
                    waiting.over()
                case StreamLost(error):
                    welcomed -= 1
                    self._lost(error)
                case RowsCame():
                    self._keep(event)
                case JobOver(trainer):
                    welcomed -= 1
                    if event.error is not None:
                        raise event.error
                    self._over[trainer] = event
                case CannotGoOn(error):
                    say = Delivery.leave if event.is_only_here else Delivery.fail
                    self._say_so(partial(say, error=error), FAREWELL_SECONDS)
                    raise error
                case Stopped():
                    self._say_so(partial(Delivery.leave, error=None), STOP_SECONDS)
                    return None
        return [self._over[assignment.trainer] for assignment in self.assignments]

    def _keep(self, rows: RowsCame) -> None:
        """Take rows, and tell every trainer up to where they are kept: one that is ahead of the others waits."""
        if self.on_rows is None:
            return
        below = self.on_rows(rows.sequence, rows.samples, rows.columns)
        for delivery in self._live.values():
            if below and delivery.is_welcome:
                delivery.kept(below - 1)

    def _whom(self) -> str:
        return "; and ".join(door.whom() for door in self.doors)

    def _lost(self, error: ManyhandsError) -> None:
        if not isinstance(error, Unreachable):
            raise error
        tell(f"the trainer is away ({error}); this loader waits for it")

    def _say_so(self, say: Callable[[Delivery], None], limit_seconds: float) -> None:
        """Tell the trainers, and give them a moment to take it."""
        told = [delivery for delivery in self._live.values() if delivery.is_welcome]
        for delivery in told:
            say(delivery)
        left, end = len(told), self.clock.monotonic() + limit_seconds
        while left and (seconds := end - self.clock.monotonic()) > 0:
            try:
                event = self._inbox.get(timeout=seconds)
            except queue.Empty:
                return
            left -= isinstance(event, JobOver | StreamLost)
