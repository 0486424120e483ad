"""The same additions in any order of arrival, and what a node makes of a lease."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from manyhands.fleet import tree
from manyhands.fleet.messages import Granted
from manyhands.pool.lane import Lane, LaneSpec
from manyhands.pool.sums import StepSum
from manyhands.pool.work import LeafBroken, LeafReady, SumReady
from manyhands.training.gradients import GradientLayout, Partial, collect
from manyhands.training.objective import Objective
from manyhands.training.state import ModelState

MODEL = nn.Linear(3, 2)
LAYOUT = GradientLayout.of(ModelState(MODEL), {})


def leaves_of(count: int, seed: int) -> list[list[torch.Tensor | None]]:
    """Gradients of unlike sizes, some of them absent."""
    generator = torch.Generator().manual_seed(seed)
    leaves: list[list[torch.Tensor | None]] = []
    for leaf in range(count):
        weight = torch.randn(2, 3, generator=generator) * 10.0 ** (leaf % 5)
        is_absent = float(torch.rand(1, generator=generator)) < 0.2
        leaves.append([None if is_absent else weight, torch.randn(2, generator=generator)])
    return leaves


def recursion(values: list[list[torch.Tensor | None]]) -> list[torch.Tensor | None]:
    """The reference's own sum over halves."""
    if len(values) == 1:
        return values[0]
    half = 1 << (len(values) - 1).bit_length() - 1
    left, right = recursion(values[:half]), recursion(values[half:])
    return [b if a is None else a if b is None else a + b for a, b in zip(left, right, strict=True)]


@st.composite
def deliveries(draw: Any) -> tuple[int, list[int]]:
    """A number of leaves, and subtrees that cover them once, in any order."""
    count = draw(st.integers(1, 21))
    depth = tree.depth_of(count)

    def cut(subtree: int) -> list[int]:
        if tree.is_absent(subtree, depth, count):
            return []
        if subtree >= 1 << depth or draw(st.booleans()):
            return [subtree]
        return cut(2 * subtree) + cut(2 * subtree + 1)

    return count, draw(st.permutations(cut(1)))


@settings(deadline=None, max_examples=60)
@given(deliveries(), st.integers(0, 1000))
def test_any_order_and_shape_of_subtrees_gives_the_same_bits(given: tuple[int, list[int]], seed: int) -> None:
    count, order = given
    depth, values = tree.depth_of(count), leaves_of(count, seed)
    sums, node = StepSum(LAYOUT), StepSum(LAYOUT)
    sums.open(count)
    for subtree in order:
        node.open(count)
        for leaf in tree.span(subtree, depth):
            if leaf < count:
                node.take(
                    tree.leaf_number(leaf, depth), collect(LAYOUT, values[leaf], 1.0, {}, node.buffer())
                )
        holder = node.holder(subtree)
        assert holder is not None
        part = node.pop(holder)
        mine = sums.buffer()
        mine.body.copy_(part.buffer.body)
        sums.take(subtree, Partial(mine, part.present))
        node.give_back(part.buffer)
    root, expected = sums.pop(), recursion(values)
    for index, value in enumerate(expected):
        assert bool(root.present >> index & 1) == (value is not None)
        if value is not None:
            assert root.buffer.views[index].numpy().tobytes() == value.numpy().tobytes()


def test_a_larger_sum_replaces_those_inside_it() -> None:
    sums, values = StepSum(LAYOUT), leaves_of(4, 3)
    sums.open(4)
    sums.take(4, collect(LAYOUT, values[0], 1.0, {}, sums.buffer()))
    whole = StepSum(LAYOUT)
    whole.open(4)
    for leaf in range(4):
        whole.take(4 + leaf, collect(LAYOUT, values[leaf], 1.0, {}, whole.buffer()))
    sums.take(1, whole.pop(), replaces=[4])
    assert sums.holder(6) == 1
    assert sums.holder(1) == 1
    sums.open(1)
    assert sums.holder(1) is None, "what is left of a step is dropped"


# ---- lane ----

X, Y = torch.randn(16, 3, generator=torch.Generator().manual_seed(0)), torch.randint(0, 2, (16,))


def lane() -> Lane:
    torch.manual_seed(0)
    made = Lane(ModelState(nn.Linear(3, 2)), Objective(), LaneSpec(0, "fp32", {}))
    made.moving.attach()
    made.state_arrived()
    return made


def granted(subtrees: tuple[int, ...], num_leaves: int = 4, without: tuple[int, ...] = ()) -> Granted:
    depth = tree.depth_of(num_leaves)
    weights = [(leaf, 4.0) for leaf in range(num_leaves) if leaf not in without]
    return Granted(1, 1, 0, depth, num_leaves, subtrees, weights, 1.0)


def batch(leaf: int) -> Any:
    return X[4 * leaf : 4 * leaf + 4], Y[4 * leaf : 4 * leaf + 4]


def said(outputs: Iterator[Any]) -> list[tuple[str, int]]:
    kinds: list[tuple[str, int]] = []
    for output in outputs:
        match output:
            case LeafReady(done):
                kinds.append(("leaf", done.leaf))
            case SumReady(subtree):
                kinds.append(("sum", subtree))
            case LeafBroken(leaf):
                kinds.append(("broken", leaf))
    return kinds


@pytest.mark.parametrize(
    ("subtrees", "expected"),
    [
        ((1,), [("leaf", 0), ("leaf", 1), ("leaf", 2), ("sum", 1)]),
        ((3,), [("leaf", 2), ("sum", 3)]),
        ((5, 3), [("sum", 5), ("leaf", 2), ("sum", 3)]),
        ((4,), [("sum", 4)]),
    ],
)
def test_a_lease_is_answered_in_maximal_sums(
    subtrees: tuple[int, ...], expected: list[tuple[str, int]]
) -> None:
    assert said(lane().run(granted(subtrees), batch, lambda: None)) == expected


def test_a_sum_names_its_leaves() -> None:
    *_, last = lane().run(granted((1,)), batch, lambda: None)
    assert isinstance(last, SumReady)
    assert [done.leaf for done in last.leaves] == [0, 1, 2, 3]


def test_a_cut_in_the_middle_delivers_what_is_whole() -> None:
    keeps = iter([None, (2,), (2,), (2,)])
    assert said(lane().run(granted((1,)), batch, lambda: next(keeps))) == [("leaf", 0), ("sum", 2)]
    keeps = iter([None, None, None, ()])
    assert said(lane().run(granted((1,)), batch, lambda: next(keeps))) == [
        ("leaf", 0),
        ("leaf", 1),
        ("leaf", 2),
    ]
    keeps = iter([None, None, (5,), (5,)])
    outputs = list(lane().run(granted((1,)), batch, lambda: next(keeps)))
    assert isinstance(outputs[-1], SumReady)
    assert outputs[-1].subtree == 2, "the sum that leaf 1 is in, which the lease covers"


def test_a_broken_leaf_does_not_take_the_rest_with_it() -> None:
    # The rest of the lease was never computed and the lease never ended: one node and one NaN hung the run.
    def broken(leaf: int) -> Any:
        x, y = batch(leaf)
        return (x * float("nan"), y) if leaf == 1 else (x, y)

    outputs = said(lane().run(granted((1,)), broken, lambda: None))
    assert outputs == [("leaf", 0), ("broken", 1), ("sum", 4), ("leaf", 2), ("sum", 3)]


def test_equal_broken_bits_have_equal_digests() -> None:
    def broken(leaf: int) -> Any:
        return X[:4] * float("inf"), Y[:4]

    digests = [o.digest for _ in range(2) for o in lane().run(granted((4,)), broken, lambda: None)]
    assert digests[0] == digests[1]


def test_a_lease_without_a_leafs_weight_is_refused() -> None:
    with pytest.raises(Exception, match="names leaf 2 without its weight"):
        list(lane().run(granted((3,), without=(2,)), batch, lambda: None))


def test_buffers_are_reused_from_lease_to_lease() -> None:
    worker = lane()
    seen = set()
    for _ in range(5):
        for output in worker.run(granted((1,)), batch, lambda: None):
            if isinstance(output, SumReady):
                seen.add(output.partial.buffer.body.data_ptr())
                worker.give_back(output.partial.buffer)
    assert len(seen) <= 3
