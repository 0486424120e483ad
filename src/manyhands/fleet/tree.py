"""The fixed binary tree that a step's leaves stand in, as arithmetic on heap numbers.

The order of additions is a property of the step, not of who computed what, so every sum has one name::

                  1                 depth D = 3, leaves L = 6
            2           3           root 1, children of k are 2k and 2k + 1
         4     5     6     (7)      leaf j is number (1 << D) + j
        8 9  10 11 12 13   . .      leaves >= L are absent: the identity, already complete

Two subtrees nest or are disjoint; sets of leaves are bit masks in Python integers (bit j is leaf j).
This module knows no lease, node, tensor or time.
"""

from __future__ import annotations

from functools import lru_cache

MAX_LEAVES = 1 << 20


def depth_of(num_leaves: int) -> int:
    """The depth of the smallest tree with room for `num_leaves` (>= 1) leaves."""
    return (num_leaves - 1).bit_length()


def leaf_number(leaf: int, depth: int) -> int:
    """The heap number of leaf `leaf`."""
    return (1 << depth) + leaf


def parent(heap: int) -> int:
    """The heap number above; the root's is 0."""
    return heap >> 1


def sibling(heap: int) -> int:
    """The other child of the same parent; meaningless for the root."""
    return heap ^ 1


def is_ancestor(upper: int, lower: int) -> bool:
    """Whether `lower` stands strictly below `upper`."""
    levels = lower.bit_length() - upper.bit_length()
    return levels > 0 and lower >> levels == upper


def is_inside(heap: int, depth: int) -> bool:
    """Whether `heap` numbers a subtree of a tree of this depth at all."""
    return 1 <= heap < (2 << depth)


def span(heap: int, depth: int) -> range:
    """The leaves below `heap`, absent ones included."""
    shift = depth + 1 - heap.bit_length()
    first = (heap << shift) - (1 << depth)
    return range(first, first + (1 << shift))


def mask(heap: int, depth: int) -> int:
    """The leaves below `heap` as a bit mask, absent ones included."""
    shift = depth + 1 - heap.bit_length()
    return ((1 << (1 << shift)) - 1) << ((heap << shift) - (1 << depth))


def is_absent(heap: int, depth: int, num_leaves: int) -> bool:
    """Whether no leaf below `heap` exists in a step of `num_leaves`: such a sum is the identity."""
    return (heap << (depth + 1 - heap.bit_length())) - (1 << depth) >= num_leaves


@lru_cache(maxsize=8192)
def cover(leaves: range, depth: int, num_leaves: int | None = None) -> tuple[int, ...]:
    """The fewest aligned subtrees that hold exactly these leaves, from left to right.

    With `num_leaves` given, a range that ends there also takes the absent leaves behind it, which cost
    nothing: five of five leaves are the root, not two subtrees.
    """
    start, full = leaves.start, 1 << depth
    reach = full if leaves.stop == num_leaves else leaves.stop
    subtrees = []
    while start < leaves.stop:
        size = start & -start or full
        while size > reach - start:
            size >>= 1
        subtrees.append((full + start) // size)
        start += size
    return tuple(subtrees)


def bits(leaves: int) -> list[int]:
    """The leaves in a mask, ascending."""
    if not leaves:
        return []
    # From the lowest leaf on: a mask of neighbours far to the right must not cost the whole tree's width.
    first = (leaves & -leaves).bit_length() - 1
    return [leaf for leaf, digit in enumerate(bin(leaves >> first)[:1:-1], first) if digit == "1"]


def runs(leaves: int) -> list[range]:
    """The mask's leaves as maximal runs of neighbours, ascending."""
    found, at = [], 0
    while leaves:
        gap = (leaves & -leaves).bit_length() - 1
        leaves >>= gap
        length = ((leaves + 1) & ~leaves).bit_length() - 1
        found.append(range(at + gap, at + gap + length))
        leaves >>= length
        at += gap + length
    return found


def cover_mask(leaves: int, depth: int, num_leaves: int) -> tuple[int, ...]:
    """`cover` for any set of leaves: maximal aligned subtrees, from left to right."""
    subtrees: tuple[int, ...] = ()
    for run in runs(leaves):
        subtrees += cover(run, depth, num_leaves)
    return subtrees


def level_of(heap: int) -> int:
    """How far below the root a subtree stands."""
    return heap.bit_length() - 1


def lowered(subtrees: tuple[int, ...], level: int, depth: int, num_leaves: int) -> tuple[int, ...]:
    """The same leaves as subtrees that stand at `level` or below: larger ones are cut, absent parts left out."""
    if all(level_of(heap) >= level for heap in subtrees):
        return subtrees
    cut: list[int] = []
    for heap in subtrees:
        shift = max(0, level - level_of(heap))
        parts = range(heap << shift, (heap + 1) << shift)
        cut += [part for part in parts if not is_absent(part, depth, num_leaves)]
    return tuple(cut)


def run_mask(leaves: range) -> int:
    """A run of leaves as a bit mask."""
    return ((1 << len(leaves)) - 1) << leaves.start
