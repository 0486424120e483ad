"""One loader's stream at the trainer, from its hello on: who may say what, and when.

::

    new ──Hello──► welcomed ──Here──► seated: Batch, Kept, Failed, Leaving, Weights
        └─ of no job here: Over, and whatever it still says is not heard
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from manyhands.errors import Mismatch, ProtocolError, UsageError
from manyhands.fleet.channels import Channel, Lost
from manyhands.fleet.parcels import Parcels
from manyhands.observe.text import clean_line, clean_name
from manyhands.observe.waiting import tell
from manyhands.split.intake import Intake
from manyhands.split.intake.farewell import Farewell
from manyhands.split.messages import (
    Batch,
    Failed,
    FromLoader,
    Hello,
    Here,
    Kept,
    Leaving,
    Over,
    Weights,
    Welcome,
)
from manyhands.split.seats import Seat
from manyhands.tensors import allocate

if TYPE_CHECKING:  # a reception makes its visitors
    from manyhands.split.reception import Reception


class Visitor:
    """One loader's stream, from its hello on; a `doors.Guest`."""

    def __init__(self, reception: Reception) -> None:
        self._reception = reception
        self.parcels: Parcels[Any] = Parcels(FromLoader, take=self._take)
        self._channel: Channel | None = None
        self._hello: Hello | None = None
        self._job: Intake | None = None
        self._seat: Seat | None = None
        self._welcomed_at = 0.0
        self._num_bytes = 0
        self._gave_weights = False
        self._is_done = self._is_late = False

    @property
    def is_done(self) -> bool:
        """Whether its job is over, or it has none here."""
        return self._is_done or (self._job is not None and self._job.is_over)

    def opened(self, channel: Channel) -> None:
        """See `doors.Guest`."""
        self._channel = channel

    def deliver(self, message: Any, tree: Any) -> None:
        """See `doors.Guest`."""
        if isinstance(message, Lost):
            self._gone()
        elif self._is_done:
            return  # it was refused, and may not have read so yet
        elif isinstance(message, Hello):
            self._greet(message)
        elif self._job is None or self._hello is None:
            raise ProtocolError(f"a loader began with {type(message).__name__} instead of Hello")
        elif isinstance(message, Here):
            self._sit(self._hello, self._job)
        elif self._seat is None:
            raise ProtocolError(f"a loader said {type(message).__name__} before it answered its welcome")
        else:
            self._hear(self._job, self._seat, message, tree)

    def _greet(self, hello: Hello) -> None:
        if self._hello is not None:
            raise ProtocolError("a loader said Hello twice")
        assert self._channel is not None
        self._hello = hello
        try:
            found = self._reception.admit(hello)
        except Mismatch as error:
            self._is_done = True
            tell(f"refused the loader {clean_name(hello.name)}: {error}")
            self._channel.send(Over(str(error), type(error).__name__))
            return
        if isinstance(found, Farewell):  # its job has ended while it was away
            self._is_done = self._is_late = True
            found.say(self._channel)
            return
        self._job = found
        self._welcomed_at = self._reception.now()
        self._channel.send(Welcome())

    def _sit(self, hello: Hello, job: Intake) -> None:
        if self._seat is not None:
            raise ProtocolError("a loader said Here twice")
        assert self._channel is not None
        round_trip = self._reception.now() - self._welcomed_at
        self._seat = self._reception.new_seat(hello, self._channel, round_trip)
        job.take_seat(self._seat)
        self._reception.changed()

    def _hear(self, job: Intake, seat: Seat, message: Any, tree: Any) -> None:
        if isinstance(message, Batch):
            job.arrived(seat, message, tree, self._num_bytes)
            self._num_bytes = 0
        elif isinstance(message, Kept):
            job.kept(seat, message.sequence)
        elif isinstance(message, Failed):
            job.failed(seat, _printable(message))
        elif isinstance(message, Leaving):
            job.resign(seat, clean_line(message.sentence, max=1000))
        elif isinstance(message, Weights):
            job.take_weights(seat, _weights(tree))
            self._reception.changed()

    def _take(self, message: Any, num_bytes: int) -> Tensor:
        """Memory for a body, where one may come now."""
        if isinstance(message, Batch) and self._job is not None and self._seat is not None:
            self._job.may_send(self._seat, num_bytes)
            self._num_bytes = num_bytes
            return self._reception.memory(num_bytes)
        is_owed = self._hello is not None and self._hello.has_weights and not self._gave_weights
        if isinstance(message, Weights) and self._seat is not None and is_owed:
            # Also where the job has some by now: of another loader, or of this one's stream that broke.
            self._gave_weights = True
            return allocate(num_bytes)
        raise ProtocolError(
            f"a loader sent {num_bytes} bytes with {type(message).__name__}, which takes none now"
        )

    def _gone(self) -> None:
        if self._job is None:
            if self._is_late and self._hello is not None:
                self._reception.heard(self._hello.errand)
            return
        if self._seat is not None:
            self._job.leave(self._seat)
        self._reception.abandon(self._job)
        self._reception.changed()


def _printable(failed: Failed) -> Failed:
    return Failed(clean_line(failed.sentence, max=1000), failed.index)


def _weights(tree: Any) -> dict[str, Tensor]:
    if not isinstance(tree, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in tree.items()
    ):
        raise UsageError("the weights of a loader must be tensors by name")
    return tree
