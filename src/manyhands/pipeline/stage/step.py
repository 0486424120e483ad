"""The words between a stage and whoever drives it: a step, its phases, what arrives and what is sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import torch
from torch import Tensor

from manyhands.pipeline.schedules.operations import Kind
from manyhands.pipeline.stage.routing import Key
from manyhands.training.objective import Objective
from manyhands.training.step import Precision

Phase = Kind | Literal["settle", "adopt"]
"""What may need messages: an operation, or one of the two ends of a step."""

Arrived = Mapping[Key, Tensor | None]
"""Messages by key. A gradient may be None: nothing that was differentiated depends on that edge."""

_CPU: Final = torch.device("cpu")


class Send(NamedTuple):
    """A message of one stage for another one, or for the boss."""

    key: Key
    to: int
    tensor: Tensor | None


@dataclass(frozen=True)
class StageSettings:
    """What a stage computes by; the same on all stages but for the device."""

    run_seed: int = 0
    device: torch.device = _CPU
    precision: Precision = "fp32"
    tied: Literal["exact", "fast"] = "exact"
    """How gradients of a parameter that several stages hold meet: per micro-batch, or once a step."""
    recompute: bool = False
    """Keep a micro-batch's inputs only, and run its forward again before its backward."""


@dataclass(frozen=True)
class Step:
    """One step, as every stage must know it."""

    number: int
    """What random numbers are keyed by."""
    factors: tuple[float, ...] = (1.0,)
    """What each micro-batch's loss is multiplied by (see `micro_batches`); zero: it has no gradient."""
    objective: Objective | None = None
    """The loss, taken on the last stage; None: at the boss, which gets the prediction and sends its gradient."""
    is_split: bool = False
    """Whether backwards come as input and weight passes."""
    keeps_graph: bool = True
    """False for forwards that no backward follows."""
    scale: float = 1.0
    """What losses are multiplied by beside (fp16), a power of two."""
