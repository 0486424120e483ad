"""The loss of a batch and its weight in the step.

A leaf's gradient is of a *mean* over something: samples, or the targets that are not ``ignore_index``, or
class weights. To average leaves of unlike size right, each is weighted with what its mean divided by; on
ragged text, weighting by samples instead is off by two thirds of the gradient's norm. With
``reduction="sum"`` nothing was divided: each leaf weighs 1, and the root does not divide either, so that the
step is the gradient of the whole sum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from manyhands.errors import UsageError
from manyhands.training.batch import Batch, forward, size_of, targets_of

IGNORE_INDEX = -100
Criterion = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Objective:
    """What is minimised.

    ``criterion(output, targets)`` gives a scalar; None takes ``output.loss`` where there is one, else
    cross-entropy, with ``(B, T, C)`` against ``(B, T)`` flattened. ``weight(batch)`` overrides a leaf's
    weight.
    """

    criterion: Criterion | None = None
    weight: Callable[[Batch], float] | None = None

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The scalar loss of `batch`, with its graph."""
        return self.loss_of(forward(model, batch), batch)

    def loss_of(self, output: Any, batch: Batch) -> Tensor:
        """The scalar loss of what the model returned for `batch`, with its graph."""
        if self.criterion is not None:
            return _scalar(self.criterion(output, targets_of(batch)))
        own = output.get("loss") if isinstance(output, dict) else getattr(output, "loss", None)
        if own is not None:
            return _scalar(own)
        return _scalar(_cross_entropy(logits_of(output), targets_of(batch)))

    def weigh(self, batch: Batch) -> float:
        """The leaf's weight: what the loss's mean over `batch` divides by."""
        if self.weight is not None:
            return float(self.weight(batch))
        if self.is_sum:
            return 1.0
        counter = _counter(self.criterion)
        return counter(batch) if counter is not None else float(size_of(batch))

    def weigh_rows(self, batch: Batch) -> list[int] | None:
        """What each sample of `batch` adds to its leaf's weight; None where a leaf's weight is no sum of that kind.

        Whole numbers, so that their sum over a leaf is what :meth:`weigh` says of it, to the bit.
        """
        if self.weight is not None or self.is_sum:
            return None
        ignored = _ignored(self.criterion)
        if ignored is None:
            return [1] * size_of(batch) if self.counts_samples else None
        targets = targets_of(batch)
        if targets.is_floating_point():
            return [1] * size_of(batch)
        counts: list[int] = (targets != ignored).unsqueeze(1).flatten(1).sum(1).tolist()
        return counts

    @property
    def is_sum(self) -> bool:
        """Whether the criterion sums, so that the step's gradient is not divided."""
        return getattr(self.criterion, "reduction", "mean") == "sum"

    @property
    def counts_samples(self) -> bool:
        """Whether the weight is the number of samples, known without loading them."""
        return self.weight is None and (self.is_sum or _counter(self.criterion) is None)


def _scalar(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise UsageError(
            f'the loss must be a scalar tensor, not {shape}: use reduction="mean" or "sum" in the criterion'
        )
    return loss.reshape(())


def logits_of(output: Any) -> Tensor:
    """The scores in what a model returned: a tensor itself, or what is called ``logits`` in it."""
    logits = output.get("logits") if isinstance(output, dict) else getattr(output, "logits", output)
    if isinstance(logits, Tensor):
        return logits
    raise UsageError(
        f"the model returns {type(output).__name__} without a loss or logits: give a criterion that takes it"
    )


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    if logits.ndim == 3 and targets.ndim == 2:
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    return functional.cross_entropy(logits, targets)


def _counter(criterion: Criterion | None) -> Callable[[Batch], float] | None:
    """How to count what a criterion's mean divides by; None where that is the samples."""
    if criterion is None:
        return _count_targets(IGNORE_INDEX, None)
    if isinstance(criterion, nn.CrossEntropyLoss | nn.NLLLoss):
        return _count_targets(criterion.ignore_index, criterion.weight)
    return None


def _ignored(criterion: Criterion | None) -> int | None:
    """The target that a criterion passes over where it counts the others; None where it does not just count."""
    if criterion is None:
        return IGNORE_INDEX
    if isinstance(criterion, nn.CrossEntropyLoss | nn.NLLLoss) and criterion.weight is None:
        return int(criterion.ignore_index)
    return None


def _count_targets(ignore_index: int, class_weights: Tensor | None) -> Callable[[Batch], float]:
    def count(batch: Batch) -> float:
        targets = targets_of(batch)
        if targets.is_floating_point():  # class probabilities: the mean is over rows
            return float(size_of(batch))
        if class_weights is None:
            return float(torch.count_nonzero(targets != ignore_index))
        kept = targets[targets != ignore_index]
        return float(class_weights.detach().to("cpu", torch.float64)[kept.to("cpu")].sum())

    return count
