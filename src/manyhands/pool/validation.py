"""Validation during a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
