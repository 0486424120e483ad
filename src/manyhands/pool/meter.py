"""What a node's work costs, lease by lease: bytes both ways, seconds of computing and of waiting."""

from __future__ import annotations

from typing import Protocol

from manyhands.clock import Clock


class Counted(Protocol):
    """Anything that counts the bytes it carried."""

    sent_bytes: int
    received_bytes: int


class LeaseMeter:
    """Figures since the last lap."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._at = clock.monotonic()
        self._sent = self._received = 0
        self._compute_seconds = 0.0
        self._original = self._compressed = 0

    def start(self) -> None:
        """Begin a lap without closing one."""
        self._at = self._clock.monotonic()
        self._compute_seconds = 0.0

    def computed(self, seconds: float) -> None:
        """A leaf took this long."""
        self._compute_seconds += seconds

    def delivered(self, num_bytes: int, sent_bytes: int) -> None:
        """A partial sum of this size was sent, as so many bytes."""
        self._original += num_bytes
        self._compressed += sent_bytes

    def seconds_since_start(self) -> float:
        """Seconds since the lap began."""
        return self._clock.monotonic() - self._at

    def lap(self, counted: Counted) -> dict[str, float]:
        """The figures of ``network_callback``: bytes and seconds since the last lap; begins a new one."""
        now = self._clock.monotonic()
        figures = {
            "sent_bytes": counted.sent_bytes - self._sent,
            "received_bytes": counted.received_bytes - self._received,
            "comp_time": self._compute_seconds,
            "net_time": max(0.0, now - self._at - self._compute_seconds),
            "original_size": self._original,
            "compressed_size": self._compressed,
        }
        self._sent, self._received = counted.sent_bytes, counted.received_bytes
        self._original = self._compressed = 0
        self._compute_seconds, self._at = 0.0, now
        return figures
