"""Ranks of one training job: each sample to exactly one of them, and as many steps for each."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
import torch
from split_loaders import Background
from torch.utils.data import TensorDataset

from manyhands.errors import UsageError
from manyhands.split.deal import Deal
from manyhands.split.loader import CPULoader
from manyhands.split.plan import Plan
from manyhands.split.remote import RemoteLoader
from manyhands.split.terms import Share, Terms


@pytest.mark.parametrize("seed", range(40))
def test_every_trainer_gets_as_many_batches_and_every_sample_goes_to_one(seed):
    rng = random.Random(seed)
    trainers, size, length = rng.randint(1, 7), rng.randint(2, 9), rng.randint(7, 200)
    deal = Deal(length, size, trainers)
    bounds = [deal.bounds(sequence) for sequence in range(deal.num_batches)]
    assert bounds[0][0] == 0
    assert bounds[-1][1] == length
    assert all(end == following[0] for (_, end), following in pairwise(bounds))
    assert all(0 < end - begin <= size for begin, end in bounds)
    assert deal.is_even
    assert deal.num_batches % trainers == 0
    # No more batches than are needed for that, but for a round that was dealt with the one before.
    assert deal.num_batches < -(-length // size) + trainers


@pytest.mark.parametrize(
    ("length", "size", "trainers", "sizes"),
    [
        (22, 4, 2, [4, 4, 4, 4, 4, 2]),
        (19, 4, 2, [4, 4, 4, 4, 1, 2]),
        (17, 4, 2, [4, 4, 2, 2, 2, 3]),
        (20, 4, 1, [4, 4, 4, 4, 4]),
        (18, 4, 1, [4, 4, 4, 4, 2]),
        (34, 4, 4, [4, 4, 4, 4, 2, 2, 2, 3, 2, 2, 2, 3]),
    ],
)
def test_only_the_last_rounds_differ_from_a_plain_cut(length, size, trainers, sizes):
    deal = Deal(length, size, trainers)
    assert [end - begin for begin, end in map(deal.bounds, range(deal.num_batches))] == sizes


def test_only_training_is_dealt_evenly():
    """Who validates or infers waits for nobody, and its batches have the numbers of a plain pass."""
    shares = [Plan(Terms("validation", {"val": 22}, 4, share=Share(rank, 4))) for rank in range(4)]
    works = [work for plan in shares for work in plan.works("val", 0)]
    assert sorted(len(work.indices) for work in works) == [2, 4, 4, 4, 4, 4]


@pytest.mark.parametrize(("samples", "size"), [(3, 2), (7, 1)])
def test_what_cannot_be_dealt_evenly_is_refused_before_anything_starts(samples, size):
    loader = CPULoader(num_workers=0)
    loader.setup_dataset(TensorDataset(torch.arange(samples)), batch_size=size)
    with pytest.raises(
        UsageError, match=f"{samples} samples in batches of {size} cannot be dealt evenly to 4"
    ):
        loader.start_loading(["a:1", "b:1", "c:1", "d:1"], epochs=1)


def test_ranks_that_wait_for_each_other_at_every_step_end_together(tmp_path, monkeypatch):
    """13 batches for 2 ranks: the second one once had a step less, and the first waited for it for ever."""
    monkeypatch.setenv("MANYHANDS_STATE_DIR", str(tmp_path / "state"))
    indices = torch.arange(100)
    loader = CPULoader(num_workers=0)
    loader.setup_dataset(TensorDataset(indices), batch_size=8)
    ranks = [RemoteLoader(0, device="cpu").start() for _ in range(2)]
    feeding = Background(
        lambda: loader.start_loading(["{}:{}".format(*rank.address) for rank in ranks], epochs=2)
    )
    seen: list[int] = []
    for _ in range(2):
        for batches in zip(*ranks, strict=True):  # a step of both, as an all-reduce makes it
            seen += [index for (batch,) in batches for index in batch.tolist()]
        assert [len(rank) for rank in ranks] == [7, 7]
    assert sorted(seen) == sorted([*range(100)] * 2)
    feeding.result()
