"""What a loader owes one trainer, and sends in the order of need within its allowance. One lock, no I/O."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from manyhands.split.credits import Allowance
from manyhands.split.jobs import Made
from manyhands.tensors import Frame, encode


@dataclass
class Parcel:
    """A batch that is ready, and the body that it travels as; None where every sample was bad."""

    made: Made
    body: Frame | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of the body."""
        return 0 if self.body is None else self.body.num_bytes


class Outbox:
    """Leases come in, what was made for them, and credit; `next` waits for what may go. From any thread."""

    def __init__(self) -> None:
        self._turn = threading.Condition()
        self._allowance = Allowance()
        self._owed: set[int] = set()
        self._ready: dict[int, Parcel] = {}
        self._below = 0
        self._is_closed = False

    def owe(self, serial: int) -> bool:
        """A lease; False where it is void, or known already."""
        with self._turn:
            if serial < self._below or serial in self._owed:
                return False
            self._owed.add(serial)
            return True

    def put(self, serial: int, made: Made) -> None:
        """The batch of a lease; dropped where nobody waits for it any more."""
        with self._turn:
            if serial in self._owed:
                self._ready[serial] = Parcel(made)
                self._turn.notify_all()

    def acknowledged(self, serials: tuple[int, ...], window_bytes: int) -> None:
        """The trainer is done with these; how much may be on its way from now on."""
        with self._turn:
            self._allowance.acknowledged(serials, window_bytes)
            self._turn.notify_all()

    def needed(self, serial: int) -> None:
        """The trainer waits for this one: it may go beyond the window."""
        with self._turn:
            self._allowance.needed = serial
            self._turn.notify_all()

    def forget(self, below: int) -> None:
        """Every lease with a lower serial number is void."""
        with self._turn:
            self._below = below
            self._owed = {serial for serial in self._owed if serial >= below}
            self._ready = {serial: parcel for serial, parcel in self._ready.items() if serial >= below}
            self._allowance.forget(below)
            self._turn.notify_all()

    def next(self) -> tuple[int, Parcel] | None:
        """The next batch that may go, its body encoded; None once closed. For one thread.

        In the order of need: later ones would fill the window before those that are used first.
        """
        while True:
            with self._turn:
                self._turn.wait_for(
                    lambda: self._is_closed or (self._owed and min(self._owed) in self._ready)
                )
                if self._is_closed:
                    return None
                serial = min(self._owed)
                parcel = self._ready[serial]
            if parcel.body is None and parcel.made.batch is not None:
                parcel.body = encode(parcel.made.batch, checks_body=False)
            with self._turn:
                if serial not in self._ready:
                    continue
                if self._allowance.may_send(serial, parcel.num_bytes):
                    del self._ready[serial]
                    self._owed.discard(serial)
                    self._allowance.sent(serial, parcel.num_bytes)
                    return serial, parcel
                # An acknowledgement, a need, or a batch that comes before it may change that.
                self._turn.wait()

    def close(self) -> None:
        """The stream is over: nothing is owed, and nothing goes."""
        with self._turn:
            self._is_closed = True
            self._owed.clear()
            self._ready.clear()
            self._turn.notify_all()
