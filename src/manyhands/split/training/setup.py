"""What a user may ask of a trainer's computation, checked once: wrong values are refused before anything starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from manyhands.errors import UsageError
from manyhands.settings import checks
from manyhands.training.objective import Objective
from manyhands.training.step import Precision, check_precision

WEIGHT_DECAY = 0.01


@dataclass(frozen=True)
class Setup:
    """The arguments of ``GPUTrainer.setup_model`` (its docstring says what they mean)."""

    model: nn.Module
    optimizer: Any = None
    criterion: Any = None
    learning_rate: float = 0.001
    scheduler: Callable[[Optimizer], Any] | None = None
    clip_norm: float | None = None
    precision: Precision = "fp32"
    compile: bool | str = False
    compute_loss: Callable[[nn.Module, Any], Any] | None = None
    objective: Objective = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "objective", Objective(self.criterion))

    def check(self) -> None:
        """UsageError naming the first argument that cannot be."""
        if not isinstance(self.model, nn.Module):
            raise UsageError(f"model={type(self.model).__name__} must be a torch.nn.Module")
        checks.number("learning_rate", self.learning_rate, 0.0, above=True)
        if self.clip_norm is not None:
            checks.number("clip_norm", self.clip_norm, 0.0, above=True)
        check_precision(self.precision)
        factory = None if isinstance(self.optimizer, Optimizer) else self.optimizer
        checks.callables(optimizer=factory, criterion=self.criterion, scheduler=self.scheduler)
        checks.callables(compute_loss=self.compute_loss)
        if self.criterion is not None and self.compute_loss is not None:
            raise UsageError("criterion and compute_loss are two answers to one question: give one of them")
        if not isinstance(self.compile, bool | str):
            raise UsageError(
                f"compile={self.compile!r} must be True, False or the name of a torch.compile backend"
            )

    def default_optimizer(self, parameters: list[nn.Parameter]) -> Optimizer:
        """AdamW as the documentation promises it."""
        return torch.optim.AdamW(parameters, lr=self.learning_rate, weight_decay=WEIGHT_DECAY)
