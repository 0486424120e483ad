"""Times, bubbles and peaks against the papers' formulas, and schedules that cannot be."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manyhands.errors import UsageError
from manyhands.pipeline.schedules import Operation, schedule_of
from manyhands.pipeline.simulator import Span, Times, simulate

NUM_WORKERS = st.integers(1, 7)
NUM_MICRO_BATCHES = st.integers(1, 20)


@pytest.mark.parametrize("name", ["gpipe", "1f1b"])
@settings(deadline=None)
@given(p=NUM_WORKERS, m=NUM_MICRO_BATCHES)
def test_the_bubble_is_that_of_the_papers(name: str, p: int, m: int) -> None:
    simulated = simulate(schedule_of(name, p, m))
    assert simulated.bubble == pytest.approx((p - 1) / (m + p - 1))
    assert simulated.makespan == pytest.approx(3.0 * (m + p - 1))


@settings(deadline=None)
@given(p=NUM_WORKERS, m=NUM_MICRO_BATCHES)
def test_naive_works_one_at_a_time(p: int, m: int) -> None:
    assert simulate(schedule_of("naive", p, m)).bubble == pytest.approx((p - 1) / p)


@settings(deadline=None)
@given(p=NUM_WORKERS, more=st.integers(0, 13))
def test_zero_bubble_idles_a_third(p: int, more: int) -> None:
    m = p + more
    assert simulate(schedule_of("zero_bubble", p, m)).bubble == pytest.approx((p - 1) / (3 * m + p - 1))


@settings(deadline=None)
@given(p=NUM_WORKERS, more=st.integers(0, 13), v=st.integers(1, 4))
def test_interleaving_divides_the_bubble_by_the_stages(p: int, more: int, v: int) -> None:
    m = p + more
    simulated = simulate(schedule_of("interleaved", p, m, stages_per_worker=v))
    assert simulated.bubble == pytest.approx((p - 1) / (v * m + p - 1))


@settings(deadline=None)
@given(p=NUM_WORKERS, m=NUM_MICRO_BATCHES)
def test_what_is_held_at_once(p: int, m: int) -> None:
    held = {
        name: simulate(schedule_of(name, p, m)).peak_activations
        for name in ("naive", "gpipe", "1f1b", "zero_bubble")
    }
    assert held["naive"] == (1,) * p
    assert held["gpipe"] == (m,) * p
    assert held["1f1b"] == tuple(min(p - worker, m) for worker in range(p))
    assert max(held["zero_bubble"]) <= min(p, m)


def test_spans_by_hand() -> None:
    times = {0: Times(1.0, 2.0, 1.0, transfer=0.5), 1: Times(2.0, 3.0, 1.0, transfer=0.25)}
    simulated = simulate(schedule_of("gpipe", 2, 1), times)
    assert simulated.spans == {
        Operation("forward", 0, 0): Span(0.0, 1.0),
        Operation("forward", 1, 0): Span(1.5, 3.5),
        Operation("backward", 1, 0): Span(3.5, 6.5),
        Operation("backward", 0, 0): Span(6.75, 8.75),
    }
    assert simulated.makespan == 8.75
    assert simulated.bubble == pytest.approx(1 - 8.0 / (2 * 8.75))


def test_a_schedule_that_waits_for_itself_is_told() -> None:
    forward, backward = (Operation(kind, 0, 0) for kind in ("forward", "backward"))
    with pytest.raises(UsageError, match="never ends"):
        simulate(((backward, forward),))


def test_an_operation_that_stands_twice_is_told() -> None:
    with pytest.raises(UsageError, match="twice"):
        simulate(((Operation("forward", 0, 0), Operation("forward", 0, 0)),))


def test_nothing_to_do_takes_no_time() -> None:
    simulated = simulate(())
    assert (simulated.makespan, simulated.bubble) == (0.0, 0.0)
