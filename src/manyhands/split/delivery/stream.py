"""What a loader hears and says on one stream: its reader's thread, and the one that sends.

::

    reader thread     Make ─► workshop ─► made ─┐
                      Used, Need, Forget        ├─► outbox ─► sender thread
                      Rows, Over ─► inbox

Whoever runs the job takes from the inbox. A stream that broke is followed by another one, with a new delivery: the
trainer leases again what it has not got.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from torch import Tensor

from manyhands import errors
from manyhands.errors import ManyhandsError, ProtocolError, RunFailed, Unreachable
from manyhands.fleet.channels import Channel, Lost
from manyhands.fleet.parcels import Parcels
from manyhands.split.delivery.events import CannotGoOn, Inbox, JobOver, RowsCame, StreamLost, Welcomed
from manyhands.split.delivery.outbox import Outbox, Parcel
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
    Leaving,
    Make,
    Need,
    Over,
    Rows,
    Used,
    Weights,
    Welcome,
)
from manyhands.split.workshop import Workshop

MOST_SHOWN_FAULT: Final = 1000
"""Characters of a bad sample's error that travel."""
MOST_SHOWN_FAULTS: Final = 50
"""Bad samples of a batch whose error travels; of the others the index, so that all of them fit one message."""

_KINDS: Final[dict[str, type[ManyhandsError]]] = {
    kind.__name__: kind
    for kind in (errors.UsageError, errors.Mismatch, errors.Refused, errors.NonFinite, errors.RunFailed)
}


@dataclass(frozen=True)
class Assignment:
    """What a delivery needs to know of its job."""

    trainer: int
    """Which of the job's trainers is at the other end."""
    hello: Hello
    weights: dict[str, Tensor] | None
    stops_on_fault: bool


class Delivery:
    """See the module; a `doors.Guest`."""

    def __init__(self, assignment: Assignment, workshop: Workshop, inbox: Inbox) -> None:
        self._assignment = assignment
        self._workshop = workshop
        self._inbox = inbox
        self.parcels: Parcels[Any] = Parcels(FromTrainer)
        self._channel: Channel | None = None
        self._outbox = Outbox()
        self._samples: dict[int, int] = {}
        self._lock = threading.Lock()
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
                self._outbox.acknowledged(serials, window_bytes)
            case Need(serial):
                self._outbox.needed(serial)
            case Forget(below):
                self._outbox.forget(below)
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

    def leave(self, error: ManyhandsError | None) -> None:
        """Hand back what is leased, for good: because of `error`, or since somebody said stop."""
        self._say(Leaving("" if error is None else str(error)[:MAX_SENTENCE]))

    def fail(self, error: ManyhandsError) -> None:
        """Tell the trainer that the job cannot go on."""
        index = error.index if isinstance(error, errors.BadSample) else None
        self._say(Failed(str(error)[:MAX_SENTENCE], index))

    # ---- leases ----

    def _lease(self, serial: int, work: Work) -> None:
        if self._outbox.owe(serial):
            self._workshop.submit(work, partial(self._made, serial))

    def _made(self, serial: int, made: Made) -> None:
        """On the workshop's thread."""
        if made.faults and self._assignment.stops_on_fault:
            fault = made.faults[0]
            self._inbox.put(CannotGoOn(errors.BadSample(_told(made, fault), fault.index)))
            return
        self._outbox.put(serial, made)

    # ---- sending ----

    def _send_all(self) -> None:
        try:
            if self._assignment.weights is not None:
                self._require_channel().send(Weights(), self._assignment.weights)
            while (item := self._outbox.next()) is not None:
                self._send(*item)
        except Unreachable:
            pass  # the reader hears of it, and says so
        except ManyhandsError as error:
            self._inbox.put(CannotGoOn(error))

    def _send(self, serial: int, parcel: Parcel) -> None:
        made = parcel.made
        if made.work.phase == "infer":
            self._samples[made.work.sequence] = len(made.indices)
        faults = tuple(
            BadOne(fault.index, fault.error[:MOST_SHOWN_FAULT] if at < MOST_SHOWN_FAULTS else "")
            for at, fault in enumerate(made.faults)
        )
        self._require_channel().send(Batch(serial, made.indices, faults, made.widths), parcel.body)

    def _say(self, message: Any) -> None:
        try:
            self._require_channel().send(message)
        except Unreachable as error:
            self._lost(error)

    # ---- ends ----

    def _over(self, over: Over, tree: Any) -> None:
        with self._lock:
            self._is_lost = self._is_over = True
        self._outbox.close()
        trainer = self._assignment.trainer
        if over.sentence:
            kind = _KINDS.get(over.kind, RunFailed)
            self._inbox.put(JobOver(trainer, error=kind(f"the trainer ended the job: {over.sentence}")))
        else:
            content = tree if isinstance(tree, dict) else {}
            self._inbox.put(JobOver(trainer, content.get("result") or {}, content.get("weights")))
        # Others of the job's trainers may not be at its end yet: this one need not wait for them.
        self._require_channel().close()

    def _lost(self, error: ManyhandsError) -> None:
        is_final, was_welcome = not isinstance(error, Unreachable), self.is_welcome
        with self._lock:
            if self._is_lost:
                return
            self._is_lost, self._is_over = True, is_final
        self._outbox.close()
        if was_welcome or is_final:
            self._inbox.put(StreamLost(error))

    def _require_channel(self) -> Channel:
        assert self._channel is not None
        return self._channel


def _told(made: Made, fault: Fault) -> str:
    return (
        f"sample {fault.index} of the {made.work.phase} data could not be made: {fault.error.strip()}\n"
        "(data.on_bad_sample=quarantine leaves such samples out)"
    )
