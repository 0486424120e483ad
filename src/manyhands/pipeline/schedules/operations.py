"""The words of a schedule: a list of operations a worker, in the order in which it runs them.

The dependencies between operations of different workers are those of the model, not of the schedule: see
`simulator`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["forward", "backward", "input_backward", "weight_backward"]
"""`backward` is both passes in one; a zero-bubble schedule parts it into the input's and the weights'."""


@dataclass(frozen=True)
class Operation:
    """One pass of one micro-batch through one stage."""

    kind: Kind
    stage: int
    micro_batch: int


Schedule = tuple[tuple[Operation, ...], ...]
"""For each worker its operations in order. With interleaving a worker owns several stages."""
