"""A run made ready: the user's model, data and options turned into plan, weights, feeder and probe.

Nothing listens and nothing is written yet; what is wrong with the arguments shows here. One leaf is computed
on the coordinator, to see which buffers training mutates and what this machine's arithmetic gives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from manyhands.errors import BadSample, ManyhandsError, UsageError
from manyhands.pool.data import Feeder, LeafLoader, Source, dataset_length
from manyhands.pool.master import Master
from manyhands.pool.options import PoolOptions, check_options
from manyhands.pool.plan import RunPlan, check_plan
from manyhands.tensors import frame
from manyhands.training import numerics
from manyhands.training.buffers import Fold, batch_norms, check_leaf_size, mutated_since, snapshot
from manyhands.training.objective import Objective
from manyhands.training.optimizer import build_optimizer, build_scheduler
from manyhands.training.scale import LossScale
from manyhands.training.seeds import derive, generators
from manyhands.training.state import ModelState
from manyhands.training.step import Leaf, leaf_gradient

PROBE_STEP = 1 << 40
"""The pseudo-step under which the probe's batches travel."""


@dataclass(frozen=True)
class ProbeLeaf:
    """One leaf that every node computes at the door."""

    indices: tuple[int, ...]
    weight: float
    frame: bytes


@dataclass(frozen=True)
class Job:
    """Everything a coordinator computes with."""

    options: PoolOptions
    plan: RunPlan
    state: ModelState
    objective: Objective
    source: Source
    master: Master
    feeder: Feeder
    probe: tuple[ProbeLeaf, ...]
    probe_seed: int
    own_class: str
    notes: tuple[str, ...]


def prepare(
    model: nn.Module, dataset: Any, criterion: Any, optimizer: Any, scheduler: Any, options: PoolOptions
) -> Job:
    """Check everything and build the job; UsageError says what is wrong with the arguments."""
    check_options(options)
    if not isinstance(model, nn.Module):
        raise UsageError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    plan = RunPlan(
        dataset_length(dataset),
        options.batch_size,
        options.micro_batches,
        options.epochs,
        options.max_steps,
        options.shuffle,
        options.drop_last,
        options.seed,
        join_tail=bool(batch_norms(model)),
    )
    check_plan(plan)
    notes = [note] if (note := check_leaf_size(model, plan.leaf_samples)) else []
    _check_last_batch(model, plan)
    state = ModelState(model, criterion)
    state.check_trainable()
    objective = Objective(criterion, options.weight)
    source = Source(dataset, options.collate_fn, options.seed)
    optim = build_optimizer(optimizer, state)
    schedule = build_scheduler(scheduler, optim)
    leaves = _probe_leaves(plan, source, objective, options.on_bad_sample == "quarantine")
    folds = _find_folds(state, objective, leaves, options)
    notes += [_first_note(name) for name, fold in folds.items() if fold is Fold.FIRST]
    master = Master(state, optim, schedule, folds, options.clip_norm, LossScale.of(options.precision))
    seed = derive(options.seed, "probe")
    feeder = Feeder(
        plan,
        LeafLoader(source, objective, options.data == "ship"),
        on_bad_sample=options.on_bad_sample,
        num_workers=options.num_workers,
        queue_size=options.queue_size,
    )
    own = _own_class(state, objective, master, leaves, seed, options)
    if options.compression is not None:
        master.compress(options.seed, plan.micro_batches)
    return Job(options, plan, state, objective, source, master, feeder, leaves, seed, own, tuple(notes))


def _check_last_batch(model: nn.Module, plan: RunPlan) -> None:
    """UsageError where batch normalisation would meet a last batch of one sample."""
    alone = plan.num_samples % plan.batch_size == 1 and not plan.drop_last
    if alone and batch_norms(model) and plan.num_steps >= plan.steps_per_epoch:
        raise UsageError(
            f"the last batch of an epoch would hold 1 of {plan.num_samples} samples, and {batch_norms(model)[0]} "
            "normalises over the batch: give drop_last=True, or another batch_size"
        )


def _first_note(name: str) -> str:
    return f"buffer {name} changes while training and is no normalisation statistic: micro-batch 0's value is taken"


def _probe_leaves(
    plan: RunPlan, source: Source, objective: Objective, quarantine: bool
) -> tuple[ProbeLeaf, ...]:
    """The first leaf, and one of the shortest kind where leaves are not all of one size."""
    bad: set[int] = set()
    while True:
        try:
            return _load_probe(plan, source, objective, bad)
        except BadSample as error:  # the feeder will meet it too, and the ledger hears of it then
            if not quarantine or len(bad) + 1 >= plan.num_samples:
                raise
            bad.add(error.index)


def _load_probe(
    plan: RunPlan, source: Source, objective: Objective, without: set[int]
) -> tuple[ProbeLeaf, ...]:
    order = plan.order(0)
    first = next(
        cut for step in range(plan.steps_per_epoch) if (cut := plan.step(step, order, without).leaves)
    )
    last = plan.step(plan.steps_per_epoch - 1, order, without).leaves or first
    chosen = [first[0]] + ([last[-1]] if len(last[-1]) != len(first[0]) else [])
    leaves = []
    for indices in chosen:
        batch = source.load(0, indices)
        leaves.append(ProbeLeaf(indices, objective.weigh(batch), frame.encode(batch).to_bytes()))
    return tuple(leaves)


def _find_folds(
    state: ModelState, objective: Objective, leaves: tuple[ProbeLeaf, ...], options: PoolOptions
) -> dict[str, Fold]:
    """Run one leaf and see which buffers it mutates; the buffers are put back."""
    kept = {name: buffer.detach().clone() for name, buffer in state.buffers.items()}
    batch, leaf = frame.decode(leaves[0].frame), Leaf(0, 0, leaves[0].weight)
    with generators(0):
        marks = snapshot(state)
        try:
            leaf_gradient(state, objective, batch, leaf, run_seed=options.seed, precision=options.precision)
        except ManyhandsError:
            raise
        except Exception as error:  # the user's model on the user's data
            raise UsageError(
                f"the model cannot compute the first micro-batch, samples {str(list(leaves[0].indices))[:200]} "
                f"({type(error).__name__}: {str(error)[:500]}): look at shapes and dtypes of the dataset's items, "
                "the model's inputs and the criterion"
            ) from error
        folds = mutated_since(state, marks)
    with torch.no_grad():
        for name, value in kept.items():
            state.buffers[name].copy_(value)
    return folds


def _own_class(
    state: ModelState,
    objective: Objective,
    master: Master,
    leaves: tuple[ProbeLeaf, ...],
    seed: int,
    options: PoolOptions,
) -> str:
    """The numeric class of this process; the model's state is put back."""
    layout = state.layout()
    kept = layout.allocate()
    state.read(layout, kept)
    device = next(iter(state.trainable.values())).device
    with generators(0):
        digest = numerics.probe(
            state,
            objective,
            master.gradients,
            [(frame.decode(leaf.frame), leaf.weight) for leaf in leaves],
            seed=seed,
            precision=options.precision,
        )
    state.write(layout, kept)
    return numerics.class_name(numerics.fingerprint(device), digest)
