"""Worker processes that make batches: started, given work, and replaced when they die.

One thread of this process talks with all of them over pipes; batches come back through shared memory and are handed
on as they lie there. The user's dataset goes to the workers once, when they start.
"""

from __future__ import annotations

import atexit
import contextlib
import socket
import threading
from collections import deque
from collections.abc import Mapping
from functools import partial
from multiprocessing import connection
from queue import Empty, SimpleQueue

import msgspec

from manyhands.errors import ManyhandsError, RunFailed, UsageError
from manyhands.split.data.streams import is_stream
from manyhands.split.jobs import Fault, Made, Phase, Work
from manyhands.split.making.hired import Worker
from manyhands.split.making.plan import MOST_DEATHS, Assignments, Job
from manyhands.split.making.slots import Slot
from manyhands.split.making.worker import READY, Answer, Ask
from manyhands.split.recipe import Recipe
from manyhands.tensors import nest

_DECODER = msgspec.msgpack.Decoder(Answer)


class ProcessMaker:
    """A `Maker` of `num_workers` spawned processes."""

    def __init__(self, recipes: Mapping[Phase, Recipe], num_workers: int) -> None:
        self._recipes = dict(recipes)
        self._streams = {phase for phase, recipe in recipes.items() if is_stream(recipe.dataset)}
        self._assignments = Assignments(num_workers)
        self._num_workers = num_workers
        self._turn = threading.Condition()
        self._ready: deque[tuple[Job, Answer]] = deque()
        self._failure: ManyhandsError | None = None
        self._freed: SimpleQueue[int] = SimpleQueue()
        self._is_closing = False
        self._early_deaths = 0

    def start(self) -> None:
        """Spawn the workers; they import torch meanwhile. UsageError where the dataset cannot be given to them."""
        self._slots = [Slot() for _ in range(self._assignments.num_slots)]
        self._wake, self._woken = socket.socketpair()
        for end in (self._wake, self._woken):
            end.setblocking(False)
        self._workers: list[Worker] = []
        try:
            for number in range(self._num_workers):
                self._workers.append(self._spawn(number))
        except Exception as error:
            self._release()
            raise UsageError(
                f"the dataset, preprocessing_fn or collate_fn cannot be given to a worker process "
                f"({type(error).__name__}: {error}): define them at the top of a module; where files or /dev/shm run "
                "out, keep samples in one tensor or array; or give num_workers=0"
            ) from error
        self._thread = threading.Thread(target=self._serve, name="manyhands-workers", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # before multiprocessing ends the workers, who would be replaced

    def submit(self, work: Work) -> None:
        """Queue `work`."""
        with self._turn:
            self._assignments.submit(work, is_stream=work.phase in self._streams)
        self._rouse()

    def next(self, timeout_seconds: float | None = None) -> Made | None:
        """The next batch that is ready; None when the time is over, or the maker is closed.

        Its tensors lie in memory shared with a worker, which gets it back when the last of them is dropped: keep no
        batch longer than needed, or copy it.

        UsageError where samples do not make a batch, RunFailed where a batch, or the start, has cost three workers
        their life.
        """
        with self._turn:
            self._turn.wait_for(self._has_news, timeout_seconds)
            if not self._ready:
                if self._failure is not None:
                    raise self._failure
                return None
            job, answer = self._ready.popleft()
            self._assignments.take()
            made = self._made(job, answer)
        self._rouse()
        return made

    def close(self) -> None:
        """End the workers and wait for them; tensors that were handed out stay good."""
        with self._turn:
            if self._is_closing:
                return
            self._is_closing = True
            self._turn.notify_all()
        atexit.unregister(self.close)
        self._rouse()
        self._thread.join()
        self._release()

    def _has_news(self) -> bool:
        return bool(self._ready) or self._failure is not None or self._is_closing

    def _made(self, job: Job, answer: Answer) -> Made:
        if answer.schema is None:
            self._assignments.free(job.slot)
            if answer.error is not None:
                raise UsageError(answer.error)
            return Made(job.work, None, (), _faults(answer))
        slot = self._slots[job.slot]
        self._collect_freed()
        if self._assignments.has_spare_slot:
            tensors = slot.views(answer.schema.entries, partial(self._free, job.slot))
        else:
            tensors = slot.copies(answer.schema.entries)
            self._assignments.free(job.slot)
        batch = nest.unflatten(answer.schema.structure, tensors)
        return Made(job.work, batch, answer.indices, _faults(answer), answer.widths)

    def _free(self, slot: int) -> None:
        """The last tensor over a slot is gone; any thread may find that out at any moment, so no lock is taken."""
        self._freed.put(slot)
        self._rouse()

    def _collect_freed(self) -> None:
        with contextlib.suppress(Empty):
            while True:
                self._assignments.free(self._freed.get_nowait())

    def _rouse(self) -> None:
        # A full pipe will wake it too; a closed one has nobody left to wake.
        with contextlib.suppress(OSError):
            self._wake.send(b"\0")

    def _serve(self) -> None:
        try:
            while self._talk():
                continue
        except Exception as error:  # noqa: BLE001 - the thread's edge: whoever waits for a batch must hear of it
            with self._turn:
                self._fail(f"the workers cannot be talked with ({type(error).__name__}: {error})")

    def _talk(self) -> bool:
        """One round with the workers; whether there is another."""
        with self._turn:
            if self._is_closing or self._failure is not None:
                return False
            self._collect_freed()
            given = self._assignments.assign()
        for number, job in given:
            self._workers[number].ask(Ask(job.ticket, job.slot, job.work))
        for ready in connection.wait([self._woken, *(worker.line for worker in self._workers)]):
            if ready is self._woken:
                with contextlib.suppress(BlockingIOError):
                    self._woken.recv(4096)
            else:
                self._hear(next(worker for worker in self._workers if worker.line is ready))
        return True

    def _hear(self, worker: Worker) -> None:
        try:
            message = worker.line.recv_bytes()
        except (EOFError, OSError):
            self._replace(worker)
            return
        if message == READY:
            self._early_deaths = 0
            worker.is_ready = True
            return
        answer = _DECODER.decode(message)
        with self._turn:
            self._ready.append((self._assignments.finish(worker.number, answer.ticket), answer))
            self._turn.notify()

    def _replace(self, worker: Worker) -> None:
        """A worker died; another takes its place, unless there is no end to it."""
        ended = worker.bury()
        with self._turn:
            guilty = self._assignments.bury(worker.number)
            self._early_deaths += not worker.is_ready
            if reason := self._why_give_up(worker, guilty):
                self._fail(f"{reason} (the last one {ended})")
                return
        try:
            self._workers[worker.number] = self._spawn(worker.number)
        except OSError as error:
            with self._turn:
                self._fail(f"a worker {ended}, and no other could be started: {error}")

    def _why_give_up(self, worker: Worker, guilty: Job | None) -> str | None:
        if self._early_deaths >= MOST_DEATHS:
            return (
                f"{MOST_DEATHS} workers ended before they could begin: what they printed says why, and num_workers=0 "
                "does without them"
            )
        if guilty is None or not worker.is_ready or guilty.deaths < MOST_DEATHS:
            return None
        return (
            f"{MOST_DEATHS} workers died making batch {guilty.work.sequence} of epoch {guilty.work.epoch} of the "
            f"{guilty.work.phase} data, samples {str(guilty.work.indices)[:200]}: there is too little memory, or a "
            "fault in native code of the dataset, and num_workers=0 shows it"
        )

    def _fail(self, reason: str) -> None:
        self._failure = RunFailed(reason)
        self._turn.notify_all()

    def _spawn(self, number: int) -> Worker:
        return Worker.spawn(number, self._slots, self._recipes)

    def _release(self) -> None:
        for worker in self._workers:
            worker.line.close()
        for worker in self._workers:
            worker.bury()
        for slot in self._slots:
            slot.close()
        self._wake.close()
        self._woken.close()


def _faults(answer: Answer) -> tuple[Fault, ...]:
    return tuple(Fault(index, error) for index, error in answer.faults)
