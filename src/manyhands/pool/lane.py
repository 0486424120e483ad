"""What a node does with a lease: leaves to partial sums, on one thread, in the tree's order.

Holds the node's model and the state it was sent last; talks to nobody. :meth:`Lane.run` yields what is to be
said, when it is to be said::

    Granted [4..7] ──▶ leaf 4 ─ Leaf   5 ─ Leaf   6 ─ Leaf   7 ─ Leaf, Sum(4..7)
                                          ▲ Trimmed: keep [4..5] ──▶ Sum(4..5), end
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from manyhands.clock import Clock, SystemClock
from manyhands.errors import ProtocolError
from manyhands.fleet import tree
from manyhands.fleet.messages import Granted, LeafDone
from manyhands.pool.sums import StepSum
from manyhands.training.batch import Batch
from manyhands.training.buffers import Fold, still_buffers
from manyhands.training.gradients import (
    GradientLayout,
    Partial,
    SumBuffer,
    collect,
    first_non_finite,
    witness,
)
from manyhands.training.moving import MovingState
from manyhands.training.objective import Objective
from manyhands.training.seeds import seed_generators
from manyhands.training.state import ModelState
from manyhands.training.step import Leaf, Precision, leaf_gradient, leaf_seed


class LeafReady(NamedTuple):
    """A leaf is computed and summed here."""

    done: LeafDone


class SumReady(NamedTuple):
    """A subtree is complete; `partial`'s buffer must come back through ``Lane.give_back``."""

    subtree: int
    partial: Partial
    leaves: list[LeafDone]


class LeafBroken(NamedTuple):
    """A leaf's loss or gradient is not finite; `digest` stands for its bits."""

    leaf: int
    digest: int
    where: str


Output = LeafReady | SumReady | LeafBroken


@dataclass(frozen=True)
class LaneSpec:
    """What a run says a leaf is."""

    seed: int
    precision: Precision
    folds: dict[str, Fold]


class Lane:
    """One model, computing one lease at a time."""

    def __init__(
        self, state: ModelState, objective: Objective, spec: LaneSpec, clock: Clock | None = None
    ) -> None:
        self.state = state
        self.objective = objective
        self.spec = spec
        self.gradients = GradientLayout.of(state, spec.folds)
        self.moving = MovingState(state, spec.folds)
        self._sums = StepSum(self.gradients)
        at = {name: index for index, name in enumerate(state.trainable)}
        self._order = [at[name] for name in self.gradients.parameters]
        self._clock = clock or SystemClock()
        self._start = {name: state.buffers[name].detach().clone() for name in spec.folds}
        self._still = still_buffers(state, spec.folds)
        self.computing: int | None = None
        """The leaf that is being loaded or computed: whatever is raised meanwhile is about it."""

    # ---- state ----

    def state_arrived(self) -> None:
        """``moving.body`` holds the weights and buffers that the next step starts from."""
        self.moving.to_model()
        self._still.mark()
        for name, start in self._start.items():
            start.copy_(self.state.buffers[name])

    def _reset_buffers(self) -> None:
        if not self._start:
            return
        with torch.no_grad():
            for name, start in self._start.items():
                self.state.buffers[name].copy_(start)

    # ---- leases ----

    def run(
        self, granted: Granted, batches: Callable[[int], Batch], keep: Callable[[], Sequence[int] | None]
    ) -> Iterator[Output]:
        """Compute a lease. `batches(leaf)` gives a leaf's batch; `keep()` the subtrees left of it (None:
        all).
        """
        self._sums.open(granted.num_leaves, granted.unit_level or 0)
        self.computing = None
        weights = dict(granted.weights)
        wanted = list(granted.subtrees)
        done: dict[int, LeafDone] = {}
        for leaf in _leaves(granted, wanted):
            kept = keep()
            if kept is not None:
                wanted = [subtree for subtree in kept if subtree in wanted or _inside_any(subtree, wanted)]
                yield from self._finished(wanted, granted, done)
            if not any(leaf in tree.span(subtree, granted.depth) for subtree in wanted):
                continue
            self.computing = leaf
            result = self._leaf(
                Leaf(granted.step, leaf, _weight(weights, leaf), granted.scale), batches(leaf)
            )
            self.computing = None
            if isinstance(result, LeafBroken):
                yield result
                wanted = _without(leaf, wanted, granted)
                yield from self._finished(wanted, granted, done)
                continue
            loss, seconds, partial = result
            done[leaf] = LeafDone(leaf, loss, seconds)
            self._sums.take(tree.leaf_number(leaf, granted.depth), partial)
            sums = list(self._finished(wanted, granted, done))
            if not sums:
                yield LeafReady(done[leaf])
            yield from sums

    def _finished(self, wanted: list[int], granted: Granted, done: dict[int, LeafDone]) -> Iterator[SumReady]:
        for subtree in list(wanted):
            holder = self._sums.holder(subtree)
            if holder is not None:
                wanted.remove(subtree)
                span = tree.span(holder, granted.depth)
                yield SumReady(
                    holder, self._sums.pop(holder), [done.pop(leaf) for leaf in span if leaf in done]
                )

    def _leaf(self, leaf: Leaf, batch: Batch) -> tuple[float, float, Partial] | LeafBroken:
        started = self._clock.monotonic()
        self._reset_buffers()
        result = leaf_gradient(
            self.state, self.objective, batch, leaf, run_seed=self.spec.seed, precision=self.spec.precision
        )
        self._still.check()
        partial = self.sum_of(result.gradients, leaf.weight / leaf.scale)
        if not (_is_number(result.loss) and witness(partial) is not None):
            where = first_non_finite(self.gradients, partial) or "the loss"
            broken = LeafBroken(leaf.number, zlib.crc32(partial.buffer.bytes), where)
            self.give_back(partial.buffer)
            return broken
        return result.loss, self._clock.monotonic() - started, partial

    def begin_leaf(self, step: int, leaf: int) -> None:
        """Put generators and buffers where a leaf starts, for a loop that computes it by hand."""
        self._reset_buffers()
        self.state.model.train()
        seed_generators(leaf_seed(self.spec.seed, step, leaf))

    def sum_of(self, gradients: Sequence[Tensor | None], factor: float) -> Partial:
        """One leaf's partial sum from mean gradients in ``parameters()`` order and the buffers as they are
        now.
        """
        ordered = [gradients[at] for at in self._order]
        return collect(self.gradients, ordered, factor, self.state.buffers, self._sums.buffer())

    def give_back(self, buffer: SumBuffer) -> None:
        """A delivered sum's buffer, to be used again."""
        self._sums.give_back(buffer)


def _leaves(granted: Granted, wanted: list[int]) -> list[int]:
    spans = [tree.span(subtree, granted.depth) for subtree in wanted]
    return [leaf for span in spans for leaf in span if leaf < granted.num_leaves]


def _without(leaf: int, wanted: list[int], granted: Granted) -> list[int]:
    """The maximal aligned subtrees of what is left: no sum of this node's may hold the broken leaf."""
    left = 0
    for subtree in wanted:
        left |= tree.mask(subtree, granted.depth)
    left &= ((1 << granted.num_leaves) - 1) & ~(1 << leaf)
    subtrees = tree.cover_mask(left, granted.depth, granted.num_leaves)
    return list(tree.lowered(subtrees, granted.unit_level or 0, granted.depth, granted.num_leaves))


def _inside_any(subtree: int, uppers: Sequence[int]) -> bool:
    return any(tree.is_ancestor(upper, subtree) for upper in uppers)


def _weight(weights: dict[int, float], leaf: int) -> float:
    if leaf not in weights:
        raise ProtocolError(
            f"the lease names leaf {leaf} without its weight: the coordinator runs another version"
        )
    return weights[leaf]


def _is_number(loss: float) -> bool:
    return loss - loss == 0.0
