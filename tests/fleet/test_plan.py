"""Shares of leaves: complete, in order, as early as any plan, and aligned where that is free."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manyhands.fleet.plan import relief, share
from manyhands.fleet.tree import cover

SPEEDS = st.lists(st.floats(0.001, 100.0), min_size=1, max_size=9).map(sorted)


def last_end(plan: list[range], seconds: list[float]) -> float:
    return max(len(run) * each for run, each in zip(plan, seconds, strict=True))


@given(st.integers(0, 300), SPEEDS, st.sampled_from([0.0, 0.1, 5.0]), st.integers(0, 40))
def test_each_leaf_is_given_once_in_order(
    num_leaves: int, seconds: list[float], delivery: float, first: int
) -> None:
    plan = share(num_leaves, seconds, delivery, first)
    assert [leaf for run in plan for leaf in run] == list(range(first, first + num_leaves))
    assert len(plan) == len(seconds)
    assert plan == share(num_leaves, seconds, delivery, first)


@given(st.integers(1, 9), st.lists(st.sampled_from([1.0, 1.5, 2.0, 7.0]), min_size=1, max_size=3).map(sorted))
def test_no_plan_of_whole_leaves_ends_earlier(num_leaves: int, seconds: list[float]) -> None:
    every = itertools.product(range(num_leaves + 1), repeat=len(seconds))
    best = min(
        max(count * each for count, each in zip(counts, seconds, strict=True))
        for counts in every
        if sum(counts) == num_leaves
    )
    assert last_end(share(num_leaves, seconds), seconds) == pytest.approx(best)


@pytest.mark.parametrize(
    ("num_leaves", "seconds", "lengths"),
    [
        (4, [1.0, 1.0], [2, 2]),
        (4, [1.0], [4]),
        (16, [1.0] * 4, [4, 4, 4, 4]),
        (2, [1.0] * 4, [1, 1, 0, 0]),
        (12, [1.0, 2.0], [8, 4]),
        # The slow one is left out: a leaf of its own would end last.
        (4, [1.0, 10.0], [4, 0]),
        # Two seconds either way; three deliveries instead of four.
        (6, [1.0] * 4, [2, 2, 2, 0]),
    ],
)
def test_shares_drawn_by_hand(num_leaves: int, seconds: list[float], lengths: list[int]) -> None:
    assert [len(run) for run in share(num_leaves, seconds)] == lengths


def test_costly_deliveries_are_saved_by_a_little_more_computing() -> None:
    free, costly = share(10, [1.0, 1.0, 1.0]), share(10, [1.0, 1.0, 1.0], 4.0)
    deliveries = [sum(len(cover(run, 4)) for run in plan) for plan in (free, costly)]
    assert deliveries[1] <= deliveries[0]


def test_nobody_to_share_with() -> None:
    assert share(5, []) == []


def test_relief_balances_what_is_left() -> None:
    assert relief(range(8), 0.0, 1.0, 1.0, 0.0) == (4, 4.0)
    assert relief(range(9), 1.0, 1.0, 0.25, 0.0)[0] == 8
    assert relief(range(1), 0.0, 1.0, 10.0, 0.0) == (0, 0.0)
    assert relief([], 3.0, 1.0, 1.0, 0.0) == (0, 0.0)


def test_relief_cuts_where_the_tree_does_if_that_is_as_early() -> None:
    # Leaf 1 is in hand; taking three or four of 2..7 ends at second 4 either way, and 4..7 is one subtree.
    assert relief(range(2, 8), 1.0, 1.0, 1.0, 0.0) == (4, 3.0)


@given(st.integers(0, 50), st.floats(0, 10), st.floats(0.01, 10), st.floats(0.01, 10), st.floats(0, 10))
def test_relief_never_loses_and_never_takes_more_than_there_is(
    tail: int, current: float, slow: float, quick: float, delivery: float
) -> None:
    count, gain = relief(range(tail), current, slow, quick, delivery)
    assert 0 <= count <= tail
    alone = current + tail * slow
    both = max(current + (tail - count) * slow, count * quick + delivery if count else 0.0)
    assert gain == pytest.approx(alone - both)
