"""Which worker makes what: bounded, fair to the oldest, nothing lost by deaths. Pure."""

from __future__ import annotations

import random

import pytest

from manyhands.split.jobs import Work
from manyhands.split.making.plan import PER_WORKER, Assignments


def work(sequence: int) -> Work:
    return Work("train", 0, sequence, (sequence,))


def filled(num_workers: int, count: int) -> Assignments:
    assignments = Assignments(num_workers)
    for sequence in range(count):
        assignments.submit(work(sequence), is_stream=False)
    return assignments


def test_the_oldest_batches_go_first_and_evenly() -> None:
    given = filled(2, 10).assign()
    assert [(worker, job.work.sequence) for worker, job in given] == [(0, 0), (1, 1), (0, 2), (1, 3)]
    assert len({job.slot for _, job in given}) == 4


def test_what_lies_ready_is_bounded_until_it_is_taken() -> None:
    assignments = filled(1, 10)
    given = assignments.assign()
    assert len(given) == PER_WORKER
    for worker, job in given:
        assignments.finish(worker, job.ticket)
    assert assignments.assign() == []
    assignments.take()
    assert len(assignments.assign()) == 1


def test_a_consumer_that_keeps_slots_is_told_when_to_copy() -> None:
    assignments = filled(1, 10)
    kept = 0
    while assignments.has_spare_slot:
        for worker, job in assignments.assign():
            assignments.finish(worker, job.ticket)
            assignments.take()
            kept += 1
    assert kept == assignments.num_slots
    assignments.free(0)
    assert assignments.has_spare_slot


def test_a_streams_batches_wait_for_the_worker_that_reads_it() -> None:
    assignments = Assignments(2)
    for sequence in range(3):
        assignments.submit(work(sequence), is_stream=True)
    assignments.submit(work(3), is_stream=False)
    assert [(worker, job.work.sequence) for worker, job in assignments.assign()] == [(0, 0), (0, 1), (1, 3)]


def test_a_dead_workers_batches_come_first_again() -> None:
    assignments = filled(2, 6)
    assignments.assign()
    guilty = assignments.bury(0)
    assert guilty is not None
    assert (guilty.work.sequence, guilty.deaths) == (0, 1)
    assert [job.work.sequence for _, job in assignments.assign()] == [0, 2]
    assert assignments.bury(0).work.sequence == 0  # type: ignore[union-attr]
    assert guilty.deaths == 2


def test_an_idle_worker_takes_nothing_with_it() -> None:
    assert Assignments(1).bury(0) is None


def test_answers_out_of_turn_are_refused() -> None:
    assignments = filled(1, 2)
    _, second = assignments.assign()[1]
    with pytest.raises(ValueError, match="not its oldest"):
        assignments.finish(0, second.ticket)


def test_any_order_of_events_makes_each_batch_once() -> None:
    for seed in range(200):
        draw = random.Random(seed)
        assignments, count = filled(3, 40), 40
        running: list[list[int]] = [[], [], []]
        kept: list[int] = []
        made: list[int] = []
        ready: list[int] = []
        while len(made) < count:
            for number, job in assignments.assign():
                running[number].append(job.ticket)
                assert len(running[number]) <= PER_WORKER
            worker, event = draw.randrange(3), draw.random()
            if event < 0.1:
                assignments.bury(worker)
                running[worker].clear()
            elif event < 0.6 and running[worker]:
                job = assignments.finish(worker, running[worker].pop(0))
                ready.append(job.work.sequence)
                kept.append(job.slot)
                assert len(set(kept)) == len(kept), "a slot was given twice"
            elif ready:
                made.append(ready.pop(0))
                assignments.take()
            if kept and draw.random() < 0.5:
                assignments.free(kept.pop(draw.randrange(len(kept))))
            if len(kept) == assignments.num_slots:
                assignments.free(kept.pop())
            assert sum(map(len, running)) + len(ready) <= PER_WORKER * 3
        assert sorted(made) == list(range(count))
