"""Heap numbers, masks and covers against their plain definitions."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from manyhands.fleet import tree


@given(st.integers(1, 200))
def test_the_depth_is_the_smallest_with_room(num_leaves: int) -> None:
    depth = tree.depth_of(num_leaves)
    assert 1 << depth >= num_leaves
    assert depth == 0 or 1 << (depth - 1) < num_leaves


@given(st.integers(0, 7), st.data())
def test_a_subtree_is_its_two_children(depth: int, data: st.DataObject) -> None:
    heap = data.draw(st.integers(1, (2 << depth) - 1))
    assert tree.is_inside(heap, depth)
    assert tree.mask(heap, depth) == tree.run_mask(tree.span(heap, depth))
    if heap < 1 << depth:
        left, right = 2 * heap, 2 * heap + 1
        assert [*tree.span(left, depth), *tree.span(right, depth)] == [*tree.span(heap, depth)]
        assert tree.sibling(left) == right
        assert tree.parent(right) == heap
        assert tree.is_ancestor(heap, left)
    assert tree.span(tree.leaf_number(0, depth), depth) == range(1)


@given(st.integers(0, 6), st.data())
def test_two_subtrees_nest_or_are_disjoint(depth: int, data: st.DataObject) -> None:
    number = st.integers(1, (2 << depth) - 1)
    one, two = data.draw(number), data.draw(number)
    both = tree.mask(one, depth) & tree.mask(two, depth)
    if tree.is_ancestor(one, two):
        assert both == tree.mask(two, depth) != tree.mask(one, depth)
    elif one != two and not tree.is_ancestor(two, one):
        assert both == 0


@given(st.integers(1, 70), st.data())
def test_a_cover_holds_exactly_its_leaves_and_is_maximal(num_leaves: int, data: st.DataObject) -> None:
    depth = tree.depth_of(num_leaves)
    start = data.draw(st.integers(0, num_leaves))
    leaves = range(start, data.draw(st.integers(start, num_leaves)))
    plain = tree.cover(leaves, depth)
    assert [leaf for heap in plain for leaf in tree.span(heap, depth)] == list(leaves)
    reaching = tree.cover(leaves, depth, num_leaves)
    assert [n for heap in reaching for n in tree.span(heap, depth) if n < num_leaves] == list(leaves)
    assert len(reaching) <= len(plain)
    assert not any(tree.is_absent(heap, depth, num_leaves) for heap in reaching)
    for heaps in (plain, reaching):
        assert not any(heap % 2 == 0 and heap + 1 in heaps for heap in heaps)


def test_a_cover_never_names_a_subtree_without_leaves() -> None:
    """Leaf 17 of 18 alone once came out as four subtrees, three of them empty, and leased to three nodes."""
    assert tree.cover(range(17, 18), 5, 18) == (49,)
    assert tree.cover(range(18), 5, 18) == (1,)
    assert tree.cover(range(16, 18), 5, 18) == (3,)


@given(st.integers(0, 2**80 - 1))
def test_masks_go_to_leaves_and_runs_and_back(mask: int) -> None:
    assert sum(1 << leaf for leaf in tree.bits(mask)) == mask
    runs = tree.runs(mask)
    assert [leaf for run in runs for leaf in run] == tree.bits(mask)
    assert all(one.stop < two.start for one, two in itertools.pairwise(runs))


def test_absent_leaves_are_told() -> None:
    absent = [heap for heap in range(1, 16) if tree.is_absent(heap, 3, 5)]
    assert absent == [7, 13, 14, 15]
