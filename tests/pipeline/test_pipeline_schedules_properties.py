"""What holds for every schedule: each operation once, in an order that ends, gradients added in one order."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manyhands.errors import UsageError
from manyhands.pipeline.schedules import NAMES, Operation, Schedule, schedule_of
from manyhands.pipeline.simulator import simulate

NUM_WORKERS = st.integers(1, 7)
NUM_MICRO_BATCHES = st.integers(1, 20)


@st.composite
def schedules(draw: st.DrawFn) -> tuple[Schedule, int, int]:
    """A schedule with its numbers of stages and micro-batches."""
    name = draw(st.sampled_from(NAMES))
    workers, micro_batches = draw(NUM_WORKERS), draw(NUM_MICRO_BATCHES)
    stages = draw(st.integers(1, 4)) if name == "interleaved" else 1
    made = schedule_of(name, workers, micro_batches, stages_per_worker=stages)
    return made, workers * stages, micro_batches


@settings(deadline=None)
@given(schedules())
def test_every_operation_runs_once_and_after_what_it_needs(case: tuple[Schedule, int, int]) -> None:
    schedule, num_stages, num_micro_batches = case
    simulated = simulate(schedule)  # refuses an operation that stands twice, or waits for itself
    passes = {(operation.stage, operation.micro_batch) for operation in simulated.spans}
    assert passes == {(stage, one) for stage in range(num_stages) for one in range(num_micro_batches)}
    for stage, one in passes:
        assert Operation("forward", stage, one) in simulated.spans
        is_whole = Operation("backward", stage, one) in simulated.spans
        halves = [
            Operation(kind, stage, one) in simulated.spans for kind in ("input_backward", "weight_backward")
        ]
        assert halves == [not is_whole, not is_whole]


@settings(deadline=None)
@given(schedules())
def test_gradients_are_added_in_the_order_of_the_micro_batches(case: tuple[Schedule, int, int]) -> None:
    schedule, _, num_micro_batches = case
    orders: dict[tuple[str, int], list[int]] = defaultdict(list)
    for own in schedule:
        for operation in own:
            orders[operation.kind, operation.stage].append(operation.micro_batch)
    backwards = [order for (kind, _), order in orders.items() if kind != "forward"]
    assert backwards == [list(range(num_micro_batches))] * len(backwards)


@settings(deadline=None)
@given(NUM_WORKERS, NUM_MICRO_BATCHES, st.integers(1, 4))
def test_a_stage_is_its_workers(num_workers: int, num_micro_batches: int, stages: int) -> None:
    made = schedule_of("interleaved", num_workers, num_micro_batches, stages_per_worker=stages)
    for worker, own in enumerate(made):
        assert {operation.stage % num_workers for operation in own} == {worker}


@pytest.mark.parametrize(
    ("name", "workers", "micro_batches", "stages", "said"),
    [
        ("gpip", 2, 4, None, "there is no schedule 'gpip'; there are naive, gpipe"),
        ("gpipe", 0, 4, None, "0 workers and 4 micro-batches"),
        ("1f1b", 2, 0, None, "2 workers and 0 micro-batches"),
        ("gpipe", 2, 4, 2, "has one stage a worker, not 2"),
        ("interleaved", 2, 4, 0, "0 stages a worker"),
    ],
)
def test_what_cannot_be_scheduled_is_told(
    name: str, workers: int, micro_batches: int, stages: int | None, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        schedule_of(name, workers, micro_batches, stages_per_worker=stages)
