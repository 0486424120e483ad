"""The loss scale of fp16 runs: large enough that small gradients survive, halved when one overflows.

The rule is that of torch's ``GradScaler`` (Micikevicius et al., Mixed Precision Training, 2018), decided once a step
on the coordinator, so that every leaf of a step has the same scale. Powers of two, so that scaling and back is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

GROWTH_STEPS = 2000
LARGEST = 2.0**24


@dataclass
class LossScale:
    """The scale of the next step. In fp32 and bf16 runs it stays 1."""

    value: float = 1.0
    good_steps: int = 0
    is_used: bool = False

    @classmethod
    def of(cls, precision: str) -> LossScale:
        """The scale that a run of this precision starts with."""
        return cls(65536.0, 0, True) if precision == "fp16" else cls()

    def overflowed(self) -> None:
        """A leaf of the step was not finite: the step is skipped, and the scale halved."""
        if self.is_used:
            self.value, self.good_steps = max(self.value / 2.0, 1.0), 0

    def committed(self) -> None:
        """A step was applied; after many in a row the scale doubles."""
        if not self.is_used:
            return
        self.good_steps += 1
        if self.good_steps >= GROWTH_STEPS:
            self.value, self.good_steps = min(self.value * 2.0, LARGEST), 0

    def to_plain(self) -> list[float]:
        """As a manifest holds it."""
        return [self.value, self.good_steps]

    def load(self, plain: Any) -> None:
        """Back from a manifest."""
        self.value, self.good_steps = float(plain[0]), int(plain[1])
