"""A lease in progress: what is wanted of it, which partial sums are there, and what is to be said of it.

One process computes a lease leaf by leaf, a group's ranks each compute a part of it; either way its sums meet
here, and a subtree that is wanted is given out as soon as it is whole. Decides and adds; computes no leaf.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from manyhands.errors import ProtocolError
from manyhands.fleet import tree
from manyhands.fleet.messages import Granted, LeafDone
from manyhands.pool.sums import StepSum
from manyhands.training.gradients import Partial


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


class Work:
    """One lease, from its grant to its last subtree; `sums` is emptied for it."""

    def __init__(self, granted: Granted, sums: StepSum) -> None:
        self.granted = granted
        self.wanted = list(granted.subtrees)
        self._weights = dict(granted.weights)
        self._done: dict[int, LeafDone] = {}
        self._sums = sums
        sums.open(granted.num_leaves, granted.unit_level or 0)

    def leaves(self) -> list[int]:
        """The leaves of all that is wanted now, in order."""
        return leaves_of(self.wanted, self.granted)

    def wants(self, leaf: int) -> bool:
        """Whether a subtree that is still wanted holds this leaf."""
        return any(leaf in tree.span(subtree, self.granted.depth) for subtree in self.wanted)

    def weight(self, leaf: int) -> float:
        """A leaf's weight; ProtocolError where the lease names none."""
        if leaf not in self._weights:
            raise ProtocolError(
                f"the lease names leaf {leaf} without its weight: the coordinator runs another version"
            )
        return self._weights[leaf]

    def keep(self, kept: Sequence[int] | None) -> Iterator[SumReady]:
        """Go on with these subtrees only (None: all); what is complete of them is given out."""
        if kept is not None:
            self.wanted = [heap for heap in kept if heap in self.wanted or _is_inside_any(heap, self.wanted)]
            yield from self._complete()

    def take(self, subtree: int, partial: Partial, leaves: Sequence[LeafDone]) -> Iterator[SumReady]:
        """Add the sum of a subtree; `leaves` tell how its leaves were computed."""
        self._done.update((done.leaf, done) for done in leaves)
        self._sums.take(subtree, partial)
        yield from self._complete()

    def leave_out(self, leaf: int) -> Iterator[SumReady]:
        """Go on without this leaf: no sum given out may hold it."""
        granted, left = self.granted, 0
        for subtree in self.wanted:
            left |= tree.mask(subtree, granted.depth)
        left &= ((1 << granted.num_leaves) - 1) & ~(1 << leaf)
        subtrees = tree.cover_mask(left, granted.depth, granted.num_leaves)
        self.wanted = list(tree.lowered(subtrees, granted.unit_level or 0, granted.depth, granted.num_leaves))
        yield from self._complete()

    def _complete(self) -> Iterator[SumReady]:
        for subtree in list(self.wanted):
            holder = self._sums.holder(subtree)
            if holder is not None:
                self.wanted.remove(subtree)
                span = tree.span(holder, self.granted.depth)
                done = [self._done.pop(leaf) for leaf in span if leaf in self._done]
                yield SumReady(holder, self._sums.pop(holder), done)


def leaves_of(subtrees: Sequence[int], granted: Granted) -> list[int]:
    """The leaves below these subtrees that the step has, in the subtrees' order."""
    spans = [tree.span(subtree, granted.depth) for subtree in subtrees]
    return [leaf for span in spans for leaf in span if leaf < granted.num_leaves]


def _is_inside_any(subtree: int, uppers: Sequence[int]) -> bool:
    return any(tree.is_ancestor(upper, subtree) for upper in uppers)
