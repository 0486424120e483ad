"""The trainer's door: loaders come in or are dialled, say which job they are of, and jobs come out.

::

    Hello ──► the job that waits or runs is this one     Welcome ──► Here ──► a seat in it: leases flow
          ──► there is none                              it is the job now, or (a service) one of those that wait
          ──► its own has ended while it was away        Over, as the others heard it
          ──► another one, in training                   Over: refused, by the name of what differs
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from manyhands.clock import Clock
from manyhands.errors import ManyhandsError, Mismatch
from manyhands.fleet.channels import Channel
from manyhands.observe.text import clean_name
from manyhands.observe.waiting import Waiting
from manyhands.split.buffers import Buffers
from manyhands.split.credits import Window
from manyhands.split.doors import Door
from manyhands.split.intake import Intake
from manyhands.split.intake.farewell import Ending, Farewell
from manyhands.split.jobs import Mode
from manyhands.split.messages import Hello
from manyhands.split.plan import Plan
from manyhands.split.seats import Bounds, Seat
from manyhands.split.staging import Staging
from manyhands.split.visitor import Visitor

_TICK_SECONDS = 0.25
_MOST_ENDED = 16
_VERBS: dict[Mode, str] = {"training": "trains", "validation": "validates", "inference": "infers"}


class Reception:
    """Takes loaders in through `doors`; use as a context manager, or `start` and `close`.

    With a CUDA `device` batches come out on it, the next one copied while the last one is used. Without `validates`
    nothing is made ahead of a training job's validation.
    """

    def __init__(
        self,
        mode: Mode,
        doors: Sequence[Door],
        bounds: Bounds,
        clock: Clock,
        device: torch.device | None = None,
        *,
        validates: bool = True,
    ) -> None:
        self._mode = mode
        self._doors = doors
        self._bounds = bounds
        self._clock = clock
        self._device = device
        self._validates = validates
        self._turn = threading.Condition()
        self._jobs: list[Intake] = []
        self._ended: deque[Ending] = deque(maxlen=_MOST_ENDED)
        self._buffers = Buffers()
        self._numbers = itertools.count(1)
        self._failure: ManyhandsError | None = None
        self._is_stopped = False

    def start(self) -> None:
        """Open the doors. UsageError for an address that cannot be listened on."""
        for door in self._doors:
            door.start(lambda: Visitor(self), self._failed)

    def __enter__(self) -> Reception:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def next_job(self) -> Intake | None:
        """The next job, once its first loader is ready; None after `stop`.

        Raises:
            Unreachable: no loader came within the time that the settings give.
            Refused: whom we dial says no.

        """
        waiting = Waiting(self._clock)
        with self._turn:
            while not self._is_stopped:
                self._ended += [job.ending() for job in self._jobs if job.is_over]
                self._jobs = [job for job in self._jobs if not job.is_over]
                ready = next((job for job in self._jobs if job.is_ready), None)
                if ready is not None:
                    return ready
                if self._failure is not None:
                    raise self._failure
                waiting.say(f"waiting for {self._whom()}")
                waiting.check(self._bounds.wait_seconds, f"no loader came: {self._whom()}")
                self._turn.wait(_TICK_SECONDS)
        return None

    def loaders(self) -> list[str]:
        """Names of the loaders that have a seat in a job."""
        with self._turn:
            return [name for job in self._jobs if not job.is_over for name in job.loaders()]

    def finish(self, result: dict[str, Any]) -> None:
        """End every job well, whoever is at which batch."""
        with self._turn:
            jobs = [job for job in self._jobs if not job.is_over]
        for job in jobs:
            job.stop()
            job.finish(result)

    def stop(self) -> None:
        """Let whoever waits for a job or a batch go on without; from any thread."""
        with self._turn:
            self._is_stopped = True
            for job in self._jobs:
                job.stop()
            self._turn.notify_all()

    def close(self) -> None:
        """End every stream; first a moment for those who may be on their way back to hear how their job ended."""
        with self._turn:
            while not self._is_stopped and any(job.is_awaited for job in self._jobs):
                self._turn.wait(_TICK_SECONDS)
        for door in self._doors:
            door.close()

    # ---- for visitors, on the threads that read ----

    def admit(self, hello: Hello) -> Intake | Farewell:
        """The job that this loader is of, or how it ended. Mismatch where it can have none here."""
        with self._turn:
            if hello.terms.mode != self._mode:
                raise Mismatch(
                    f"this trainer {_VERBS[self._mode]}, and the loader asks for {hello.terms.mode}: start the trainer "
                    f"{_ADVICE[hello.terms.mode]}"
                )
            if (farewell := self._ended_for(hello.errand)) is not None:
                return farewell
            for job in (job for job in self._jobs if not job.is_over):
                if self._is_of(job, hello):
                    return job
                if self._mode == "training":
                    difference = job.terms.difference(hello.terms)
                    raise Mismatch(
                        f"this loader is not of the job that is here: {difference}; loaders of one job agree on their "
                        "data, batch size, shuffle, seed and epochs"
                    )
            plan = Plan(hello.terms, validates=self._validates)
            job = Intake(hello, plan, self._bounds, self._clock, self._whom, self._staging())
            self._jobs.append(job)
            return job

    def _is_of(self, job: Intake, hello: Hello) -> bool:
        """Whether this loader is one of that job's: who asks for scores or rows asks for those of its own data."""
        if self._mode == "training":
            return job.terms.difference(hello.terms) is None
        return self._mode == "validation" and job.is_for(hello.errand)

    def _ended_for(self, errand: str) -> Farewell | None:
        """How the job of this call ended, if it did."""
        for job in self._jobs:
            if job.is_over and job.is_for(errand):
                return job.farewell
        return next((ending.farewell for ending in self._ended if errand in ending.errands), None)

    def new_seat(self, hello: Hello, channel: Channel, round_trip_seconds: float) -> Seat:
        """What the job will know of a loader."""
        window = Window(round_trip_seconds, self._bounds.window_bytes)
        return Seat(
            next(self._numbers), clean_name(hello.name), hello.capacity, channel, window, hello.errand
        )

    def memory(self, num_bytes: int) -> Tensor:
        """Memory for a batch that is about to come."""
        return self._buffers.take(num_bytes)

    def now(self) -> float:
        """Seconds of a monotonic clock."""
        return self._clock.monotonic()

    def changed(self) -> None:
        """A job may have become ready, or lost its last loader before it began."""
        with self._turn:
            self._turn.notify_all()

    def abandon(self, job: Intake) -> None:
        """A loader of it has gone before it began: without any, it is no job."""
        with self._turn:
            if job in self._jobs and job.is_abandoned:
                self._jobs.remove(job)

    def heard(self, errand: str) -> None:
        """The stream on which a latecomer was told how its job ended is over."""
        with self._turn:
            for job in self._jobs:
                job.heard(errand)
            self._turn.notify_all()

    def _failed(self, error: ManyhandsError) -> None:
        with self._turn:
            self._failure = error
            self._turn.notify_all()

    def _staging(self) -> Staging | None:
        is_cuda = self._device is not None and self._device.type == "cuda"
        return Staging(self._device) if self._device is not None and is_cuda else None

    def _whom(self) -> str:
        return "; or ".join(door.whom() for door in self._doors)


_ADVICE: dict[Mode, str] = {
    "training": "with start_training()",
    "validation": 'with start_service(mode="validation")',
    "inference": 'with start_service(mode="inference")',
}
