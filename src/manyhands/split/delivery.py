"""A loader's end of one stream: leases in, batches out within the window, results back.

::

    reader thread     Make ─► workshop ─► made ─┐
                      Used ─► allowance         ├─► sender thread: in the order of need
                      Rows, Over ─► inbox       ┘

Whoever runs the job takes from the inbox. A stream that broke is followed by another one, with a new delivery: the
trainer leases again what it has not got.
"""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from torch import Tensor

from manyhands import errors
from manyhands.errors import ManyhandsError, ProtocolError, RunFailed, Unreachable
from manyhands.fleet.channels import Channel, Lost
from manyhands.fleet.parcels import Parcels
from manyhands.split.credits import Allowance
from manyhands.split.inference.wishes import check_columns
from manyhands.split.jobs import Fault, Made, Work
from manyhands.split.messages import (
    MAX_SENTENCE,
    BadOne,
    Batch,
    Failed,
    Forget,
    FromTrainer,
    Hello,
    Here,
    Kept,
    Make,
    Need,
    Over,
    Rows,
    Used,
    Weights,
    Welcome,
)
from manyhands.split.workshop import Workshop
from manyhands.tensors import Frame, encode

MOST_SHOWN_FAULT: Final = 1000
"""Characters of a bad sample's error that travel."""
MOST_SHOWN_FAULTS: Final = 50
"""Bad samples of a batch whose error travels; of the others the index, so that all of them fit one message."""

_KINDS: Final[dict[str, type[ManyhandsError]]] = {
    kind.__name__: kind
    for kind in (errors.UsageError, errors.Mismatch, errors.Refused, errors.NonFinite, errors.RunFailed)
}


@dataclass(frozen=True)
class RowsCame:
    """What inference made of a batch that this delivery sent."""

    sequence: int
    samples: int
    columns: dict[str, Any]


@dataclass(frozen=True)
class JobOver:
    """The trainer ended the job: a result, or an error."""

    trainer: int
    result: dict[str, Any] | None = None
    weights: dict[str, Tensor] | None = None
    error: ManyhandsError | None = None


@dataclass(frozen=True)
class Welcomed:
    """The trainer has taken this loader in."""


@dataclass(frozen=True)
class StreamLost:
    """A stream broke; its door opens another one."""

    error: ManyhandsError


@dataclass(frozen=True)
class CannotGoOn:
    """The loader cannot go on: its data, its workers, or nobody to be reached."""

    error: ManyhandsError


@dataclass(frozen=True)
class Stopped:
    """Somebody here said stop."""


Event = RowsCame | JobOver | Welcomed | StreamLost | CannotGoOn | Stopped
Inbox = queue.SimpleQueue[Event]


@dataclass(frozen=True)
class Assignment:
    """What a delivery needs to know of its job."""

    trainer: int
    """Which of the job's trainers is at the other end."""
    hello: Hello
    weights: dict[str, Tensor] | None
    stops_on_fault: bool


@dataclass
class _Ready:
    made: Made
    body: Frame | None = None


class Delivery:
    """See the module; a `doors.Guest`."""

    def __init__(self, assignment: Assignment, workshop: Workshop, inbox: Inbox) -> None:
        self._assignment = assignment
        self._workshop = workshop
        self._inbox = inbox
        self.parcels: Parcels[Any] = Parcels(FromTrainer)
        self._channel: Channel | None = None
        self._turn = threading.Condition()
        self._allowance = Allowance()
        self._owed: set[int] = set()
        self._ready: dict[int, _Ready] = {}
        self._samples: dict[int, int] = {}
        self._below = 0
        self._is_over = False
        self._is_lost = False
        self._sender = threading.Thread(target=self._send_all, name="manyhands-sender", daemon=True)

    @property
    def is_done(self) -> bool:
        """Whether the job is over."""
        return self._is_over

    @property
    def is_welcome(self) -> bool:
        """Whether the trainer has taken this loader in, and is still there."""
        return self._sender.ident is not None and not self._is_lost

    def opened(self, channel: Channel) -> None:
        """See `doors.Guest`."""
        self._channel = channel
        channel.send(self._assignment.hello)

    def deliver(self, message: Any, tree: Any) -> None:
        """See `doors.Guest`."""
        match message:
            case Lost(error):
                self._lost(error)
            case Welcome():
                self._say(Here())
                self._sender.start()
                self._inbox.put(Welcomed())
            case Make(leases):
                for serial, work in leases:
                    self._lease(serial, work)
            case Used(serials, window_bytes):
                with self._turn:
                    self._allowance.acknowledged(serials, window_bytes)
                    self._turn.notify_all()
            case Need(serial):
                with self._turn:
                    self._allowance.needed = serial
                    self._turn.notify_all()
            case Forget(below):
                self._forget(below)
            case Rows(sequence):
                samples = self._samples.pop(sequence, 0)
                self._inbox.put(RowsCame(sequence, samples, check_columns(tree, samples)))
            case Over():
                self._over(message, tree)
            case _:
                raise ProtocolError(f"a trainer said {type(message).__name__}, which means nothing here")

    def kept(self, sequence: int) -> None:
        """Rows up to this batch are as safe as they were asked to be."""
        self._say(Kept(sequence))

    def fail(self, error: ManyhandsError) -> None:
        """Tell the trainer that the job cannot go on."""
        index = error.index if isinstance(error, errors.BadSample) else None
        self._say(Failed(str(error)[:MAX_SENTENCE], index))

    # ---- leases ----

    def _lease(self, serial: int, work: Work) -> None:
        with self._turn:
            if serial < self._below or serial in self._owed:
                return
            self._owed.add(serial)
        self._workshop.submit(work, partial(self._made, serial))

    def _forget(self, below: int) -> None:
        with self._turn:
            self._below = below
            self._owed = {serial for serial in self._owed if serial >= below}
            self._ready = {serial: ready for serial, ready in self._ready.items() if serial >= below}
            self._allowance.forget(below)
            self._turn.notify_all()

    def _made(self, serial: int, made: Made) -> None:
        """On the workshop's thread."""
        if made.faults and self._assignment.stops_on_fault:
            fault = made.faults[0]
            self._inbox.put(CannotGoOn(errors.BadSample(_told(made, fault), fault.index)))
            return
        with self._turn:
            if serial in self._owed and not self._is_lost:
                self._ready[serial] = _Ready(made)
                self._turn.notify_all()

    # ---- sending ----

    def _send_all(self) -> None:
        try:
            if self._assignment.weights is not None:
                self._require_channel().send(Weights(), self._assignment.weights)
            while (item := self._next()) is not None:
                self._send(*item)
        except Unreachable:
            pass  # the reader hears of it, and says so
        except ManyhandsError as error:
            self._inbox.put(CannotGoOn(error))

    def _next(self) -> tuple[int, _Ready] | None:
        """The next batch that may go, its body ready; None once the stream is over.

        In the order of need: later ones would fill the window before those that are used first.
        """
        while True:
            with self._turn:
                self._turn.wait_for(lambda: self._is_lost or (self._owed and min(self._owed) in self._ready))
                if self._is_lost:
                    return None
                serial = min(self._owed)
                ready = self._ready[serial]
            if ready.body is None and ready.made.batch is not None:
                ready.body = encode(ready.made.batch, checks_body=False)
            num_bytes = _num_bytes(ready)
            with self._turn:
                if serial not in self._ready:
                    continue
                if self._allowance.may_send(serial, num_bytes):
                    del self._ready[serial]
                    self._owed.discard(serial)
                    self._allowance.sent(serial, num_bytes)
                    return serial, ready
                # An acknowledgement, a need, or a batch that comes before it may change that.
                self._turn.wait()

    def _send(self, serial: int, ready: _Ready) -> None:
        made = ready.made
        if made.work.phase == "infer":
            self._samples[made.work.sequence] = len(made.indices)
        faults = tuple(
            BadOne(fault.index, fault.error[:MOST_SHOWN_FAULT] if at < MOST_SHOWN_FAULTS else "")
            for at, fault in enumerate(made.faults)
        )
        self._require_channel().send(Batch(serial, made.indices, faults, made.widths), ready.body)

    def _say(self, message: Any) -> None:
        try:
            self._require_channel().send(message)
        except Unreachable as error:
            self._lost(error)

    # ---- ends ----

    def _over(self, over: Over, tree: Any) -> None:
        self._end(is_over=True)
        trainer = self._assignment.trainer
        if over.sentence:
            kind = _KINDS.get(over.kind, RunFailed)
            self._inbox.put(JobOver(trainer, error=kind(f"the trainer ended the job: {over.sentence}")))
        else:
            content = tree if isinstance(tree, dict) else {}
            self._inbox.put(JobOver(trainer, content.get("result") or {}, content.get("weights")))

    def _lost(self, error: ManyhandsError) -> None:
        with self._turn:
            if self._is_lost or self._is_over:
                return
        was_welcome = self.is_welcome
        is_final = not isinstance(error, Unreachable)
        self._end(is_over=is_final)
        if was_welcome or is_final:
            self._inbox.put(StreamLost(error))

    def _end(self, *, is_over: bool) -> None:
        with self._turn:
            self._is_lost = True
            self._is_over = is_over
            self._owed.clear()
            self._ready.clear()
            self._turn.notify_all()

    def _require_channel(self) -> Channel:
        assert self._channel is not None
        return self._channel


def _num_bytes(ready: _Ready) -> int:
    return 0 if ready.body is None else ready.body.num_bytes


def _told(made: Made, fault: Fault) -> str:
    return (
        f"sample {fault.index} of the {made.work.phase} data could not be made: {fault.error.strip()}\n"
        "(data.on_bad_sample=quarantine leaves such samples out)"
    )
