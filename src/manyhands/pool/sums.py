"""The step's sum as it grows: partial sums of outstanding subtrees, siblings merged as soon as both are
there.

In a compressed run the sum of a unit is settled when it is complete, which is rounding it to int8 and back; above
units, settled sums are added. Who computed a unit, in how many pieces, does not show.

Holds tensors for the lease machine, which decides what is taken: its ``covered`` set and these bodies are
always the same subtrees. At most one buffer per outstanding subtree is alive, and freed ones are used again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from manyhands.fleet import tree
from manyhands.training.gradients import GradientLayout, Partial, SumBuffer, combine

Settle = Callable[[Partial, int], None]

MOST_FREE = 4
FREE_BYTES = 1 << 24
"""Buffers kept for the next step: so many, or as many small ones as fit; more live only while a step needs them."""


class StepSum:
    """The partial sums of one step of `num_leaves` leaves."""

    def __init__(self, layout: GradientLayout) -> None:
        self._layout = layout
        self._free: list[SumBuffer] = []
        self._sums: dict[int, Partial] = {}
        self._depth = 0
        self._num_leaves = 0
        self._level = 0
        self._settle: Settle | None = None

    def open(self, num_leaves: int, level: int = 0, settle: Settle | None = None) -> None:
        """Begin a step; what was left of the last one is dropped.

        Sums are merged up to `level`. With `settle` it is called with each complete one there, by the number of its
        unit, and they are merged on to the root.
        """
        self.drop(list(self._sums))
        self._depth, self._num_leaves = tree.depth_of(num_leaves), num_leaves
        self._level, self._settle = level, settle

    def buffer(self) -> SumBuffer:
        """A buffer to receive a partial sum into; it comes back through `take` or `give_back`."""
        return self._free.pop() if self._free else self._layout.allocate()

    def give_back(self, buffer: SumBuffer) -> None:
        """A buffer that is not needed any more."""
        if len(self._free) < max(MOST_FREE, FREE_BYTES // max(self._layout.layout.num_bytes, 1 << 14)):
            self._free.append(buffer)

    def take(
        self, subtree: int, partial: Partial, replaces: Iterable[int] = (), *, is_settled: bool = False
    ) -> None:
        """Store the sum of `subtree` in place of `replaces`, then merge upward."""
        self.drop(replaces)
        subtree, partial = self._merged(subtree, partial, self._level)
        if self._settle is not None and tree.level_of(subtree) == self._level:
            if not is_settled:
                self._settle(partial, subtree - (1 << self._level))
            subtree, partial = self._merged(subtree, partial, 0)
        self._sums[subtree] = partial

    def _merged(self, subtree: int, partial: Partial, level: int) -> tuple[int, Partial]:
        """The largest subtree, at `level` or below, whose sum is complete with this one."""
        while subtree >> level > 1:
            other = tree.sibling(subtree)
            if not tree.is_absent(other, self._depth, self._num_leaves):
                neighbour = self._sums.pop(other, None)
                if neighbour is None:
                    break
                left, right = (neighbour, partial) if other < subtree else (partial, neighbour)
                partial = combine(self._layout, left, right)
                self.give_back(right.buffer)
            subtree = tree.parent(subtree)
        return subtree, partial

    def drop(self, subtrees: Iterable[int]) -> None:
        """Forget partial sums that a larger one replaces."""
        for subtree in subtrees:
            self.give_back(self._sums.pop(subtree).buffer)

    def holder(self, subtree: int) -> int | None:
        """The stored subtree that contains all of `subtree`: itself or an ancestor."""
        while subtree:
            if subtree in self._sums:
                return subtree
            subtree = tree.parent(subtree)
        return None

    def pop(self, subtree: int = 1) -> Partial:
        """A finished sum, by default the root's; its buffer must come back through `give_back`."""
        return self._sums.pop(subtree)
