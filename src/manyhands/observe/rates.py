"""Speeds that follow change, and numbers for people. Time is an argument; nothing here reads a clock."""

from __future__ import annotations

import math


class Rate:
    """Amount per second as an exponentially weighted mean, for events that come at any distance.

    An event's weight halves every `half_life_seconds`. The weight of the time before the first event is
    divided out, so the first seconds are not too low; silence lets the rate fall.
    """

    def __init__(self, half_life_seconds: float = 10.0) -> None:
        self._decay = math.log(2.0) / half_life_seconds
        self._start: float | None = None
        self._at = 0.0
        self._sum = 0.0

    def start(self, now: float) -> None:
        """Begin to count at `now`; called by the first `add` otherwise, whose amount then has no duration."""
        if self._start is None:
            self._start = self._at = now

    def add(self, amount: float, now: float) -> None:
        """Count `amount` (samples, bytes) at `now` seconds."""
        if self._start is None:
            self.start(now)
            return
        self._forward(now)
        self._sum += amount

    def per_second(self, now: float) -> float:
        """The rate at `now`; 0.0 before there is a duration to divide by."""
        if self._start is None:
            return 0.0
        self._forward(now)
        weight = -math.expm1(-self._decay * (self._at - self._start)) / self._decay
        return self._sum / weight if weight > 0.0 else 0.0

    def _forward(self, now: float) -> None:
        elapsed = max(0.0, now - self._at)
        self._sum *= math.exp(-self._decay * elapsed)
        self._at += elapsed


def format_bytes(amount: float) -> str:
    """`0 B`, `999 B`, `1.5 KiB`, `12 MiB`: binary units, two or three digits."""
    units = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
    place = 0
    while abs(amount) >= 999.5 and place < len(units) - 1:
        amount /= 1024
        place += 1
    return (
        f"{amount:.0f} {units[place]}"
        if place == 0 or abs(amount) >= 9.95
        else f"{amount:.1f} {units[place]}"
    )


def format_count(amount: float) -> str:
    """`7`, `950`, `1.2k`, `34k`, `5.6M`: decimal units, two or three digits."""
    units = ("", "k", "M", "G", "T")
    place = 0
    while abs(amount) >= 999.5 and place < len(units) - 1:
        amount /= 1000
        place += 1
    exact = abs(amount) >= 9.95 or amount == int(amount)
    return f"{amount:.0f}{units[place]}" if exact else f"{amount:.1f}{units[place]}"


def format_duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 05 s`, `1 h 02 min`, `2 d 03 h`; "unknown" for NaN and infinity."""
    if not math.isfinite(seconds):
        return "unknown"
    if seconds < 9.95:
        return f"{max(0.0, seconds):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"
