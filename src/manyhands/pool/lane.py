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

import torch
from torch import Tensor

from manyhands.clock import Clock, SystemClock
from manyhands.fleet import tree
from manyhands.fleet.messages import Granted, LeafDone
from manyhands.pool.sums import StepSum
from manyhands.pool.work import LeafBroken, LeafReady, Output, Work
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

Batches = Callable[[int], Batch]
Keep = Callable[[], Sequence[int] | None]


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
        self.sums = StepSum(self.gradients)
        """Where the partial sums of the lease in hand come together."""
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

    def state_bytes(self) -> memoryview:
        """``moving.body`` as it arrived, whatever leaves have done to its buffers since."""
        self._reset_buffers()
        return self.moving.bytes

    def _reset_buffers(self) -> None:
        if not self._start:
            return
        with torch.no_grad():
            for name, start in self._start.items():
                self.state.buffers[name].copy_(start)

    # ---- leases ----

    def run(self, granted: Granted, batches: Batches, keep: Keep) -> Iterator[Output]:
        """Compute a lease. `batches(leaf)` gives a leaf's batch; `keep()` the subtrees left of it (None:
        all).
        """
        work = self.begin(granted)
        for leaf in work.leaves():
            yield from work.keep(keep())
            if work.wants(leaf):
                yield from self.compute(work, leaf, batches)

    def begin(self, granted: Granted) -> Work:
        """A lease whose partial sums come together here, whoever computes them."""
        self.computing = None
        return Work(granted, self.sums)

    def compute(self, work: Work, leaf: int, batches: Batches) -> Iterator[Output]:
        """Compute one leaf of a lease, and add it to what is there."""
        granted = work.granted
        self.computing = leaf
        result = self._leaf(Leaf(granted.step, leaf, work.weight(leaf), granted.scale), batches(leaf))
        self.computing = None
        if isinstance(result, LeafBroken):
            yield result
            yield from work.leave_out(leaf)
            return
        loss, seconds, partial = result
        done = LeafDone(leaf, loss, seconds)
        sums = list(work.take(tree.leaf_number(leaf, granted.depth), partial, [done]))
        if not sums:
            yield LeafReady(done)
        yield from sums

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
        return collect(self.gradients, ordered, factor, self.state.buffers, self.sums.buffer())

    def give_back(self, buffer: SumBuffer) -> None:
        """A delivered sum's buffer, to be used again."""
        self.sums.give_back(buffer)


def _is_number(loss: float) -> bool:
    return loss - loss == 0.0
