"""What a machine has given so far, as a line for its owner. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from manyhands.observe.rates import format_bytes, format_count, format_duration


@dataclass(frozen=True)
class Given:
    """Micro-batches and samples computed, seconds of computing, bytes both ways."""

    leaves: int = 0
    samples: int = 0
    seconds: float = 0.0
    sent_bytes: int = 0
    received_bytes: int = 0

    def __add__(self, other: Given) -> Given:
        """Both together."""
        return Given(
            self.leaves + other.leaves,
            self.samples + other.samples,
            self.seconds + other.seconds,
            self.sent_bytes + other.sent_bytes,
            self.received_bytes + other.received_bytes,
        )


def describe(given: Given) -> str:
    """`given so far: 1.2k micro-batches · 38.4k samples · 2 min of computing · 1.3 GB sent · 1.2 GB received`."""
    return " · ".join(
        [
            f"given so far: {format_count(given.leaves)} micro-batches",
            f"{format_count(given.samples)} samples",
            f"{format_duration(given.seconds)} of computing",
            f"{format_bytes(given.sent_bytes)} sent",
            f"{format_bytes(given.received_bytes)} received",
        ]
    )
