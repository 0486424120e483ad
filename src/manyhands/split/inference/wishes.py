"""What a user wants back from inference, as plain data that travels to the trainer; and what comes back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from manyhands.errors import UsageError
from manyhands.settings import checks

Columns = dict[str, np.ndarray[Any, Any]]
"""Arrays by name, a row for each kept sample."""


@dataclass(frozen=True)
class Wishes:
    """The arguments of ``run_inference`` that shape its result."""

    top_k: int = 1
    confidence_threshold: float = 0.0
    """Rows whose likeliest class has a lower probability are dropped, on the device."""
    return_details: bool = False
    return_full_probabilities: bool = False
    return_raw_outputs: bool = False

    def check(self) -> None:
        """UsageError naming the first that cannot be."""
        checks.whole("top_k", self.top_k, 1)
        checks.number("confidence_threshold", self.confidence_threshold, 0.0, 1.0)
        for name in ("return_details", "return_full_probabilities", "return_raw_outputs"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"{name}={getattr(self, name)!r} must be True or False")
