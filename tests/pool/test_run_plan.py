"""Epochs into steps, steps into leaves: each sample once, whatever the numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manyhands.errors import UsageError
from manyhands.pool.plan import RunPlan, check_plan

PLANS = st.builds(
    RunPlan,
    num_samples=st.integers(1, 200),
    batch_size=st.integers(1, 50),
    micro_batches=st.integers(1, 50),
    epochs=st.integers(1, 3),
    max_steps=st.none() | st.integers(1, 40),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
    seed=st.integers(-5, 5),
    join_tail=st.booleans(),
).filter(lambda plan: plan.micro_batches <= plan.batch_size and plan.steps_per_epoch > 0)


@given(PLANS)
def test_each_sample_is_applied_once_an_epoch(plan: RunPlan) -> None:
    check_plan(plan)
    applied = 0
    for epoch in range(plan.epochs):
        seen: list[int] = []
        order = plan.order(epoch)
        for number in range(plan.steps_per_epoch):
            step = plan.step(epoch * plan.steps_per_epoch + number, order)
            assert step.epoch == plan.epoch_of(step.step) == epoch
            seen += [index for leaf in step.leaves for index in leaf]
            applied += step.num_samples if step.step < plan.num_steps else 0
        assert len(set(seen)) == len(seen)
        if not plan.drop_last:
            assert sorted(seen) == list(range(plan.num_samples))
    assert applied == plan.samples_expected


@given(PLANS)
def test_leaves_have_one_size_all_run(plan: RunPlan) -> None:
    m = plan.leaf_samples
    order = plan.order(0)
    for number in range(plan.steps_per_epoch):
        leaves = plan.step(number, order).leaves
        assert all(len(leaf) == m for leaf in leaves[:-1])
        assert 1 <= len(leaves[-1]) <= m + plan.join_tail
        assert len(leaves) <= plan.micro_batches
        if plan.join_tail and len(leaves) > 1 and m > 1:
            assert len(leaves[-1]) > 1


@given(PLANS, st.sets(st.integers(0, 199), max_size=20))
def test_quarantined_samples_are_left_out_and_no_other(plan: RunPlan, bad: set[int]) -> None:
    order = plan.order(0)
    for number in range(plan.steps_per_epoch):
        whole = [i for leaf in plan.step(number, order).leaves for i in leaf]
        cut = [i for leaf in plan.step(number, order, bad).leaves for i in leaf]
        assert cut == [i for i in whole if i not in bad]


def test_a_short_last_batch_has_fewer_leaves_not_thinner_ones() -> None:
    plan = RunPlan(22, 16, 4, 1, shuffle=False)
    assert [len(leaf) for leaf in plan.step(0, plan.order(0)).leaves] == [4, 4, 4, 4]
    assert [len(leaf) for leaf in plan.step(1, plan.order(0)).leaves] == [4, 2]
    assert plan.ends_epoch(1)
    assert not plan.ends_epoch(0)
    assert RunPlan(22, 16, 4, 1, max_steps=1).ends_epoch(0)


@pytest.mark.parametrize(
    ("plan", "names"),
    [
        (RunPlan(0, 4, 2, 1), r"the dataset is empty \(len 0\)"),
        (RunPlan(9, 0, 2, 1), "batch_size=0"),
        (RunPlan(9, 4, 0, 1), "micro_batches=0"),
        (RunPlan(9, 4, 2, 0), "epochs=0"),
        (RunPlan(9, 4, 2, 1, max_steps=0), "max_steps=0"),
        (RunPlan(9, 2, 4, 1), "micro_batches=4 is more than batch_size=2"),
        (RunPlan(9, 16, 4, 1, drop_last=True), "drop_last=True leaves no step: 9 samples"),
        (RunPlan(9, 2.5, 2, 1), "batch_size=2.5"),  # type: ignore[arg-type]
    ],
)
def test_an_impossible_plan_names_the_argument(plan: RunPlan, names: str) -> None:
    with pytest.raises(UsageError, match=names):
        check_plan(plan)
