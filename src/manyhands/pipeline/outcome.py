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

    def number(self, name: str) -> float | None:
        """The number of that name that any member gave."""
        return next((given[name] for given in self.numbers.values() if name in given), None)
