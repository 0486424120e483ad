"""What a user wants back from inference, as plain data that travels to the trainer; and what comes back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from manyhands.errors import ProtocolError, UsageError
from manyhands.settings import checks

Columns = dict[str, np.ndarray[Any, Any]]
"""Arrays by name, a row for each kept sample."""
COLUMNS: Final = (
    "indices",
    "predictions",
    "confidences",
    "top_k_indices",
    "top_k_probabilities",
    "probabilities",
    "raw_outputs",
)
"""What a batch may have."""


def check_columns(given: Any, samples: int) -> Columns:
    """What a trainer sent of a batch of so many samples, where that is columns: their names become files' names.

    ProtocolError for another name, anything but an array, or more rows than samples.
    """
    if not isinstance(given, dict) or not set(given) <= set(COLUMNS):
        raise ProtocolError("a trainer sent rows that are no columns of an inference")
    if not all(isinstance(column, np.ndarray) and column.ndim for column in given.values()):
        raise ProtocolError("a trainer sent rows that are no arrays")
    lengths = {len(column) for column in given.values()}
    if given and ("indices" not in given or len(lengths) > 1 or max(lengths) > samples):
        raise ProtocolError(f"a trainer sent {sorted(lengths)} rows of a batch of {samples} samples")
    return given


def check_alike(columns: Columns, name: str, dtype: np.dtype[Any], row: tuple[int, ...]) -> None:
    """UsageError where this column's rows are not as those of the batches before."""
    if name not in columns or columns[name].dtype != dtype or columns[name].shape[1:] != row:
        now = f"{columns[name].dtype} {columns[name].shape[1:]}" if name in columns else "none"
        raise UsageError(
            f"{name} of this batch has rows of {now}, and those before were {dtype} {row}: one array cannot hold both; "
            "pad what the model returns to one shape, or keep batches of another shape apart"
        )


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
