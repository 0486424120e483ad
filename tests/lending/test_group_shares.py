"""Who computes what in a group: every leaf once, no sum beyond a subtree of the lease, nobody with more than needed."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from manyhands.fleet import tree
from manyhands.pool.lending.group.shares import remaining, shares


@st.composite
def leases(draw: st.DrawFn) -> tuple[tuple[int, ...], int, int]:
    """Disjoint subtrees that hold some leaves, the depth of their tree, and its number of leaves."""
    num_leaves = draw(st.integers(1, 40))
    depth = tree.depth_of(num_leaves)
    leaves = draw(st.integers(1, (1 << num_leaves) - 1))
    level = draw(st.integers(0, depth))
    subtrees = tree.lowered(tree.cover_mask(leaves, depth, num_leaves), level, depth, num_leaves)
    return subtrees, depth, num_leaves


def leaves_of(subtrees: tuple[int, ...], depth: int, num_leaves: int) -> list[int]:
    return [leaf for heap in subtrees for leaf in tree.span(heap, depth) if leaf < num_leaves]


@settings(deadline=None, max_examples=200)
@given(leases(), st.integers(1, 9))
def test_each_leaf_has_one_rank_and_no_rank_more_than_its_share(lease, num_ranks):
    subtrees, depth, num_leaves = lease
    wanted = leaves_of(subtrees, depth, num_leaves)
    parts = shares(subtrees, depth, num_leaves, num_ranks)
    assert len(parts) == num_ranks
    counts = [len(leaves_of(part, depth, num_leaves)) for part in parts]
    assert sorted(leaf for part in parts for leaf in leaves_of(part, depth, num_leaves)) == sorted(wanted)
    assert max(counts) == -(-len(wanted) // num_ranks)
    for part in parts:
        for heap in part:
            assert any(heap == upper or tree.is_ancestor(upper, heap) for upper in subtrees)


@settings(deadline=None, max_examples=200)
@given(leases(), st.data())
def test_what_is_left_of_a_part_is_what_is_still_wanted_of_it(lease, data):
    subtrees, depth, num_leaves = lease
    subtree = data.draw(st.sampled_from(subtrees))
    own = leaves_of((subtree,), depth, num_leaves)
    kept = data.draw(st.lists(st.sampled_from(own), unique=True))
    heaps = [tree.leaf_number(leaf, depth) for leaf in kept]
    left = remaining(subtree, heaps, depth, num_leaves)
    assert leaves_of(left, depth, num_leaves) == sorted(kept)
    assert all(heap == subtree or tree.is_ancestor(subtree, heap) for heap in left)
    assert leaves_of(remaining(subtree, [1], depth, num_leaves), depth, num_leaves) == own
