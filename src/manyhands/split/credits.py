"""How many bytes a loader may send ahead of its trainer: pure flow control, on both ends of one stream.

::

    loader   Allowance: sent and not yet acknowledged ≤ window          "may I send this batch?"
    trainer  Window:    window = max(2 batches, 2 · rate · round trip)  "how far may it run ahead?"

A rate that the window itself limits is window / round trip, so twice rate times round trip doubles the window
until the link or the trainer is what limits. The window is bounded below, so that one batch is always on its way
while another is used, and above, unless two batches alone are more. It cannot be turned off. Bytes and seconds are
numbers here; no clock is read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from manyhands.errors import ProtocolError

LEAST_WINDOW_BYTES: Final = 4 << 20
MOST_WINDOW_BYTES: Final = 256 << 20
"""Bound of what a fast far link may hold; two batches may be more."""
MIN_BATCHES: Final = 2
MIN_ROUND_TRIPS: Final = 2


@dataclass
class Window:
    """The trainer's end: what one loader may have sent that is not consumed yet."""

    round_trip_seconds: float = 0.0
    most_bytes: int = MOST_WINDOW_BYTES
    waiting_bytes: int = 0
    """Arrived and not consumed."""
    received_bytes: int = 0
    _largest_bytes: int = 0
    _rate: float = 0.0
    _mark: tuple[float, int] | None = None

    @property
    def window_bytes(self) -> int:
        """At least two batches and two bandwidth-delay products; it never shrinks, so no credit is taken back."""
        batches = MIN_BATCHES * self._largest_bytes
        product = int(MIN_ROUND_TRIPS * self._rate * self.round_trip_seconds)
        return max(batches, min(max(product, LEAST_WINDOW_BYTES), self.most_bytes))

    @property
    def is_nearly_full(self) -> bool:
        """Whether another batch may not fit."""
        return self.waiting_bytes + self._largest_bytes > self.window_bytes

    def check(self, num_bytes: int) -> None:
        """Before `num_bytes` are received: ProtocolError where the loader had no credit for them.

        One batch above the window is allowed: that which the trainer waits for.
        """
        largest = max(num_bytes, self._largest_bytes)
        if self.waiting_bytes + num_bytes > max(self.window_bytes, MIN_BATCHES * largest) + largest:
            raise ProtocolError(
                f"a loader sends {num_bytes:,} bytes beside {self.waiting_bytes:,} that are not consumed; its window "
                f"is {self.window_bytes:,}"
            )

    def arrived(self, num_bytes: int, now: float) -> None:
        """A whole batch is here at `now` seconds."""
        self.waiting_bytes += num_bytes
        self.received_bytes += num_bytes
        self._largest_bytes = max(self._largest_bytes, num_bytes)
        if self._mark is None:
            self._mark = (now, self.received_bytes)
            return
        since, before = self._mark
        # Over at least ten round trips, so that one burst out of a buffer is no bandwidth.
        if now - since >= max(10 * self.round_trip_seconds, 0.1):
            self._rate = max(self._rate, (self.received_bytes - before) / (now - since))
            self._mark = (now, self.received_bytes)

    def consumed(self, num_bytes: int) -> None:
        """So many bytes of what arrived were used, or dropped."""
        self.waiting_bytes -= num_bytes


@dataclass
class Allowance:
    """The loader's end: what it sent, by serial number, and may send."""

    window_bytes: int = LEAST_WINDOW_BYTES
    needed: int | None = None
    """What the trainer waits for: it may go at once, also where later batches fill the window.

    So a batch that was leased again need not wait for room that only its own use would make.
    """
    _sent: dict[int, int] = field(default_factory=dict)
    _sent_bytes: int = 0
    _largest_bytes: int = 0

    @property
    def sent_bytes(self) -> int:
        """Sent and not acknowledged."""
        return self._sent_bytes

    def may_send(self, serial: int, num_bytes: int) -> bool:
        """Whether this batch fits the window, or is the one that the trainer waits for."""
        least = MIN_BATCHES * max(num_bytes, self._largest_bytes)
        return serial == self.needed or self._sent_bytes + num_bytes <= max(self.window_bytes, least)

    def sent(self, serial: int, num_bytes: int) -> None:
        """The batch is on its way."""
        self._sent[serial] = num_bytes
        self._sent_bytes += num_bytes
        self._largest_bytes = max(self._largest_bytes, num_bytes)

    def acknowledged(self, serials: tuple[int, ...], window_bytes: int) -> None:
        """The trainer is done with these; the window from now on."""
        for serial in serials:
            self._sent_bytes -= self._sent.pop(serial, 0)
        self.window_bytes = window_bytes

    def forget(self, below: int) -> None:
        """The trainer is done with every batch whose serial number is lower."""
        self.acknowledged(tuple(serial for serial in self._sent if serial < below), self.window_bytes)
