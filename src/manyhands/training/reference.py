"""One process, the same numbers: what a pool's weights are compared with.

A plain loop over the eager module, on one screen, sharing no code with the pool: no leases, no wire, no
partial-sum bodies. It does share the definition of a leaf (seeds, loss, weight), since that is what is being
reproduced; with compression also Q and D (training/rounded.py). The sum over leaves is a recursion over halves, which
is the tree that the pool promises.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from manyhands.errors import NonFinite
from manyhands.training.batch import collate
from manyhands.training.buffers import Fold, batch_norms, mutated_since, snapshot
from manyhands.training.objective import Objective
from manyhands.training.optimizer import OptimizerFactory, SchedulerFactory, build_optimizer, build_scheduler
from manyhands.training.rounded import Rounded
from manyhands.training.scale import LossScale
from manyhands.training.seeds import derive, epoch_order, generators
from manyhands.training.state import ModelState, weights_sha256
from manyhands.training.step import Leaf, LeafGradient, Precision, leaf_gradient

Gradients = list[Tensor | None]


@dataclass(frozen=True)
class ReferenceReport:
    """What one process made of the same job; ``losses`` holds one value a step, NaN for a skipped one."""

    weights_sha256: str
    losses: list[float]
    samples_applied: int
    steps: int


def reference(
    model: nn.Module,
    dataset: Any,
    *,
    batch_size: int = 16,
    micro_batches: int = 4,
    epochs: int = 1,
    max_steps: int | None = None,
    criterion: Any = None,
    optimizer: Optimizer | OptimizerFactory | None = None,
    scheduler: SchedulerFactory | None = None,
    shuffle: bool = True,
    drop_last: bool = False,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    seed: int = 0,
    clip_norm: float | None = None,
    precision: Precision = "fp32",
    weight: Callable[[Any], float] | None = None,
    compression: str | None = None,
) -> ReferenceReport:
    """Train `model` in place, alone. Arguments mean what they mean to ``CentralServer``."""
    state = ModelState(model, criterion)
    objective = Objective(criterion, weight)
    opt = build_optimizer(optimizer, state)
    lrs = build_scheduler(scheduler, opt)
    scale = LossScale.of(precision)
    rounded = Rounded(state, seed, micro_batches) if compression == "int8" else None
    losses: list[float] = []
    samples = 0
    for epoch in range(epochs):
        order = epoch_order(seed, epoch, len(dataset), shuffle=shuffle)
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            if (drop_last and len(indices) < batch_size) or len(losses) == max_steps:
                break
            leaves = _cut(indices, -(-batch_size // micro_batches), bool(batch_norms(model)))
            batches = [_load(dataset, leaf, collate_fn, seed, epoch) for leaf in leaves]
            with nullcontext() if rounded is None else rounded.told():
                loss = _step(state, objective, batches, len(losses), seed, precision, rounded, scale.value)
            if clip_norm is not None and not math.isnan(loss):
                torch.nn.utils.clip_grad_norm_(list(state.trainable.values()), clip_norm)
            losses.append(loss)
            if math.isnan(loss):
                scale.overflowed()
            else:
                opt.step()
                scale.committed()
            if lrs is not None:
                lrs.step()
            if rounded is not None:
                rounded.tell()
            samples += 0 if math.isnan(loss) else len(indices)
    for parameter in model.parameters():
        parameter.grad = None
    return ReferenceReport(weights_sha256(model), losses, samples, len(losses))


def _cut(indices: list[int], size: int, join_tail: bool) -> list[list[int]]:
    leaves = [indices[i : i + size] for i in range(0, len(indices), size)]
    if join_tail and len(leaves) > 1 and len(leaves[-1]) == 1:
        leaves[-2:] = [leaves[-2] + leaves[-1]]
    return leaves


def _load(dataset: Any, indices: list[int], collate_fn: Any, seed: int, epoch: int) -> Any:
    items = []
    for index in indices:
        with generators(derive(seed, "item", epoch, index)):
            items.append(dataset[index])
    with generators(derive(seed, "collate", epoch, indices[0])):
        return collate(items, collate_fn)


def _step(
    state: ModelState,
    objective: Objective,
    batches: list[Any],
    step: int,
    seed: int,
    precision: Precision,
    rounded: Rounded | None,
    scale: float,
) -> float:
    """Gradients of one global batch into ``.grad``, buffers into the model; returns the mean loss.

    NaN, with nothing changed, where an fp16 leaf overflowed; NonFinite where one of another precision did.
    """
    before = {name: buffer.clone() for name, buffer in state.buffers.items()}
    weights = [objective.weigh(batch) for batch in batches]
    losses: list[float] = []
    leaves: list[Gradients] = []
    after: list[dict[str, Tensor]] = []
    folds: dict[str, Fold] = {}
    for number, (batch, w) in enumerate(zip(batches, weights, strict=True)):
        _restore(state, before)
        marks = snapshot(state)
        result = leaf_gradient(
            state, objective, batch, Leaf(step, number, w, scale), run_seed=seed, precision=precision
        )
        if not _is_finite(result):
            _restore(state, before)
            if precision != "fp16":
                raise NonFinite(f"micro-batch {number} of step {step} is not finite")
            return math.nan
        folds |= mutated_since(state, marks)
        losses.append(result.loss * w)
        leaves.append([None if g is None else _wide(g) * (w / scale) for g in result.gradients])
        after.append({name: buffer.clone() for name, buffer in state.buffers.items()})
    divisor = 1.0 if objective.is_sum else sum(weights)
    sums = _sum(leaves) if rounded is None else rounded.sum(leaves, step, _sum)
    for parameter, total in zip(state.trainable.values(), sums, strict=True):
        parameter.grad = None if total is None else (total / divisor).to(parameter.dtype)
    for name, fold in folds.items():
        _restore(state, {name: _fold([buffers[name] for buffers in after], fold)})
    return sum(losses) / divisor if divisor else 0.0


def _is_finite(result: LeafGradient) -> bool:
    gradients = [g for g in result.gradients if g is not None]
    return math.isfinite(result.loss) and all(bool(torch.isfinite(g).all()) for g in gradients)


def _wide(gradient: Tensor) -> Tensor:
    return (
        gradient if gradient.dtype in (torch.float64, torch.complex64, torch.complex128) else gradient.float()
    )


def _tree(values: list[Any], add: Callable[[Any, Any], Any]) -> Any:
    """The sum over a full binary tree of 2^k leaves, absent ones being nothing."""
    if len(values) == 1:
        return values[0]
    half = 1 << (len(values) - 1).bit_length() - 1
    return add(_tree(values[:half], add), _tree(values[half:], add))


def _sum(leaves: list[Gradients]) -> Gradients:
    total: Gradients = _tree(leaves, _add_gradients)
    return total


def _add_gradients(left: Gradients, right: Gradients) -> Gradients:
    return [b if a is None else a if b is None else a + b for a, b in zip(left, right, strict=True)]


def _fold(values: list[Tensor], fold: Fold) -> Tensor:
    if fold is Fold.MEAN:
        mean: Tensor = _tree(values, torch.add) / len(values)
        return mean
    return values[0]


def _restore(state: ModelState, buffers: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in buffers.items():
            state.buffers[name].copy_(value)
