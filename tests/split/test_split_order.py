"""The order of batches: a real DataLoader's, whole over all shares, and the same from any position on."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader

from manyhands.errors import UsageError
from manyhands.split.plan import Plan
from manyhands.split.terms import Share, Terms


def plan_of(length: int = 103, batch_size: int = 8, **more: object) -> Plan:
    lengths = more.pop("lengths", {"train": length})
    return Plan(Terms("training", lengths, batch_size, shuffle=True, **more))  # type: ignore[arg-type]


def local(length: int, batch_size: int, seed: int, epochs: int) -> list[list[tuple[int, ...]]]:
    generator = torch.Generator().manual_seed(seed)
    loader = DataLoader(
        range(length), batch_size, shuffle=True, generator=generator, collate_fn=tuple
    )  # what a user of one machine writes
    return [list(loader) for _ in range(epochs)]


@pytest.mark.parametrize(
    ("length", "batch_size", "seed"), [(103, 8, 0), (64, 64, 7), (5, 8, 3), (9000, 100, 1)]
)
def test_every_epoch_has_a_local_data_loaders_order(length, batch_size, seed):
    plan = plan_of(length, batch_size, seed=seed)
    expected = local(length, batch_size, seed, 3)
    assert [[work.indices for work in plan.works("train", epoch)] for epoch in range(3)] == expected
    # Going back, and beginning in a later epoch, change nothing.
    assert [work.indices for work in plan.works("train", 0)] == expected[0]
    assert [work.indices for work in plan_of(length, batch_size, seed=seed).works("train", 2)] == expected[2]


def test_without_shuffling_batches_follow_the_dataset():
    plan = Plan(Terms("validation", {"val": 10}, 4))
    assert [work.indices for work in plan.works("val", 0)] == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9)]
    assert plan.num_batches("val") == 3
    assert plan.num_batches("train") == 0


def test_the_shares_of_several_trainers_make_the_whole_once():
    whole = list(plan_of().works("train", 1))
    shares = [list(plan_of(share=Share(rank, 3)).works("train", 1)) for rank in range(3)]
    works = sorted((w for share in shares for w in share), key=lambda work: work.sequence)
    assert works[:12] == whole[:12]
    assert [i for work in works for i in work.indices] == [i for work in whole for i in work.indices]
    assert [work.sequence for work in shares[1]] == [1, 4, 7, 10, 13]
    assert [work.sequence for work in plan_of(share=Share(1, 3)).works("train", 1, start=5)] == [7, 10, 13]


def test_what_comes_next_is_known_over_the_end_of_an_epoch():
    terms = Terms("training", {"train": 16, "val": 8}, 8, epochs=2)
    legs = [(work.phase, work.epoch, work.sequence) for work in Plan(terms).works_from("train", 0, 1)]
    assert legs == [
        ("train", 0, 1),
        ("val", 0, 0),
        ("train", 1, 0),
        ("train", 1, 1),
        ("val", 1, 0),
    ]
    alone = Plan(terms, validates=False)
    assert {work.phase for work in alone.works_from("train", 0)} == {"train"}


def test_a_position_that_is_not_there_is_refused():
    with pytest.raises(UsageError, match="batch 99: the train data has batches 0 to 12"):
        plan_of().check("train", 0, 99)
    with pytest.raises(UsageError, match="no infer data; it has train"):
        plan_of().check("infer", 0, 0)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"lengths": {"train": 9}}, "length of the train data is 9, and this job's is 10"),
        ({"lengths": {"train": 10, "val": 3}}, "length of the val data is 3, and this job's is none"),
        ({"batch_size": 5}, "batch_size is 5, and this job's is 4"),
        ({"seed": 1}, "seed is 1"),
        ({"shuffle": True}, "shuffle is True"),
        ({"epochs": 3}, "epochs is 3"),
        ({"fingerprint": "b"}, "kind of dataset is b"),
        ({"share": Share(1, 2)}, "1 of 2, and this job's is 0 of 1"),
    ],
)
def test_the_odd_loader_is_told_apart_by_name(change, name):
    first = {"lengths": {"train": 10}, "batch_size": 4, "fingerprint": "a"}
    job, other = Terms("training", **first), Terms("training", **{**first, **change})
    assert job.difference(job) is None
    assert name in (job.difference(other) or "")
