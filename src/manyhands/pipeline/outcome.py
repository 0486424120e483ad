"""What the workers gave back for one command. Plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from manyhands.pipeline.post import Name


@dataclass
class Outcome:
    """What the workers gave back: numbers and tensors by member, and the values that were sent to the boss."""

    numbers: dict[int, dict[str, float]] = field(default_factory=dict)
    trees: dict[int, Any] = field(default_factory=dict)
    values: dict[Name, Any] = field(default_factory=dict)

    def loss(self) -> float | None:
        """The sum of the losses that stages told, in their order; None where none did."""
        told = {name: one for given in self.numbers.values() for name, one in given.items()}
        losses = {int(name.split()[1]): one for name, one in told.items() if name.startswith("loss ")}
        return sum(losses[stage] for stage in sorted(losses)) if losses else None

    def idle_share(self) -> float:
        """The share of all workers' time in which they did not compute, from 0 to 1: the bubble, and waiting for data.

        Each worker tells its own seconds, so that their clocks need not agree.
        """
        longest = max((given.get("span", 0.0) for given in self.numbers.values()), default=0.0)
        busy = sum(given.get("busy", 0.0) for given in self.numbers.values())
        return 1 - busy / (longest * len(self.numbers)) if longest else 0.0
