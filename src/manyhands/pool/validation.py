"""Validation during a run, and the decision to stop early."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from manyhands.pool.data import Source
from manyhands.training.batch import forward, size_of, targets_of, to_device
from manyhands.training.objective import Objective
from manyhands.training.seeds import derive, generators
from manyhands.training.step import evaluating


@dataclass(frozen=True)
class Validation:
    """The mean loss, weighted as in training, and the accuracy where targets are classes."""

    loss: float
    accuracy: float | None
    samples: int


def validate(model: nn.Module, objective: Objective, source: Source, batch_size: int) -> Validation:
    """Run `model` in eval mode over the source's dataset, in order; leaves the model as it was."""
    total = weight = 0.0
    correct = counted = 0
    device = next(iter(model.parameters())).device
    size = len(source.dataset)
    with evaluating(model):
        for start in range(0, size, batch_size):
            batch = to_device(source.load(0, range(start, min(start + batch_size, size))), device)
            w = objective.weigh(batch)
            with generators(derive(source.seed, "validation", start)):
                loss = float(objective.loss(model, batch)) if w else 0.0
                hits = _hits(model, batch)
            total, weight = total + loss * w, weight + w
            if hits is not None:
                correct, counted = correct + hits, counted + size_of(batch)
    divisor = 1.0 if objective.is_sum else weight
    return Validation(total / divisor if divisor else 0.0, correct / counted if counted else None, size)


def _hits(model: nn.Module, batch: Any) -> int | None:
    """How many samples are classified right; None where the task is no classification of (B, C) against
    (B,).
    """
    targets = targets_of(batch)
    if targets.ndim != 1 or targets.is_floating_point():
        return None
    output = forward(model, batch)
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if logits is None or logits.ndim != 2 or logits.shape[0] != targets.shape[0]:
        return None
    return int((logits.argmax(1) == targets).sum())


@dataclass
class EarlyStopping:
    """Stops when the monitored value has not improved for `patience` validations; remembers the best
    weights.
    """

    monitor: str = "val_loss"
    patience: int = 5
    min_delta: float = 0.001
    restore_best: bool = True
    best: float | None = None
    waited: int = 0
    best_state: dict[str, Tensor] = field(default_factory=dict)

    def update(self, result: Validation, model: nn.Module) -> bool:
        """Take one validation; True when the run should stop."""
        value = result.loss if self.monitor == "val_loss" else -(result.accuracy or 0.0)
        if self.best is None or value < self.best - self.min_delta:
            self.best, self.waited = value, 0
            if self.restore_best:
                self.best_state = {name: t.detach().clone() for name, t in model.state_dict().items()}
            return False
        self.waited += 1
        return self.waited >= self.patience

    def to_plain(self) -> dict[str, Any]:
        """What a checkpoint keeps of it: tensors and plain values."""
        return {"best": self.best, "waited": self.waited, "best_state": self.best_state}

    def load(self, plain: Mapping[str, Any]) -> None:
        """Back from a checkpoint."""
        self.best, self.waited, self.best_state = plain["best"], plain["waited"], plain["best_state"]

    def restore(self, model: nn.Module) -> None:
        """Put the best weights back."""
        if self.best_state:
            with torch.no_grad():
                model.load_state_dict(self.best_state)
