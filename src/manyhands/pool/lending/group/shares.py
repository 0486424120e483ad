"""Which of a lease's leaves each rank computes. Pure.

Ranks are alike, so none takes more leaves than an even share, rounded up. Every subtree that a rank delivers is
one more body to add, so runs are cut where the tree is::

    leaves  0 1 2 3 4 5     2 ranks    0 1 2 | 3 4 5        sums (0 1) (2)  (3) (4 5)
                            3 ranks    0 1 | 2 3 | 4 5      sums (0 1)  (2 3)  (4 5)
                            4 ranks    0 1 | 2 3 | 4 5 |    the same: a fourth would not end it earlier
"""

from __future__ import annotations

from collections.abc import Sequence

from manyhands.fleet import plan, tree


def shares(subtrees: Sequence[int], depth: int, num_leaves: int, num_ranks: int) -> list[tuple[int, ...]]:
    """The subtrees for each of `num_ranks` ranks, which together hold exactly the leaves of `subtrees`.

    None of them reaches beyond one of `subtrees`: the sums of two of these are never added here.
    """
    leaves = [leaf for heap in subtrees for leaf in tree.span(heap, depth) if leaf < num_leaves]
    is_run = leaves[-1] - leaves[0] + 1 == len(leaves)
    first = leaves[0] if is_run else 0
    runs = plan.share(len(leaves), [1.0] * num_ranks, first=first)
    return [_cover(leaves[run.start - first : run.stop - first], subtrees, depth, num_leaves) for run in runs]


def remaining(subtree: int, kept: Sequence[int], depth: int, num_leaves: int) -> tuple[int, ...]:
    """What is left of a rank's subtree where only `kept` is still wanted of the lease."""
    wanted = 0
    for heap in kept:
        wanted |= tree.mask(heap, depth)
    return _inside(subtree, wanted & ((1 << num_leaves) - 1), depth, num_leaves)


def _cover(leaves: Sequence[int], subtrees: Sequence[int], depth: int, num_leaves: int) -> tuple[int, ...]:
    mask = sum(1 << leaf for leaf in leaves)
    return tuple(part for heap in subtrees for part in _inside(heap, mask, depth, num_leaves))


def _inside(heap: int, mask: int, depth: int, num_leaves: int) -> tuple[int, ...]:
    """The leaves of `mask` below `heap` as subtrees; none reaches higher, not even where all beside it is absent."""
    cover = tree.cover_mask(mask & tree.mask(heap, depth), depth, num_leaves)
    return tree.lowered(cover, tree.level_of(heap), depth, num_leaves)
