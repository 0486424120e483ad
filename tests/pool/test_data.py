"""Leaves from a dataset: the same items whoever fetches them, and what happens to bad ones."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from manyhands.errors import BadSample, UsageError
from manyhands.pool.data import Feeder, LeafLoader, Source, dataset_length
from manyhands.pool.plan import RunPlan
from manyhands.tensors import frame
from manyhands.training.objective import Objective


class Random(Dataset[Any]):
    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Any:
        return torch.tensor([index, torch.rand(1).item(), np.random.rand(), random.random()]), index % 3


class Bad(Random):
    def __getitem__(self, index: int) -> Any:
        if index in (3, 7):
            raise OSError(f"file {index} is torn")
        return super().__getitem__(index)


PLAN = RunPlan(20, 8, 4, 2)


def feeder(dataset: Any, plan: RunPlan = PLAN, *, ship: bool = True, **options: Any) -> Feeder:
    return Feeder(plan, LeafLoader(Source(dataset, None, plan.seed), Objective(), ship), **options)


def test_random_items_are_the_same_whenever_they_are_fetched() -> None:
    source = Source(Random(), None, 0)
    torch.rand(3)
    first = source.load(1, [4, 9])[0]
    random.random()
    assert torch.equal(source.load(1, [9])[0][0], first[1])
    assert not torch.equal(source.load(2, [9])[0], source.load(1, [9])[0]), (
        "another epoch, another augmentation"
    )
    assert not torch.equal(Source(Random(), None, 1).load(1, [9])[0], source.load(1, [9])[0])


def test_a_leaf_carries_its_frame_and_weight() -> None:
    data = feeder(Random()).load(0)
    assert [leaf.weight for leaf in data.leaves] == [2.0] * 4
    leaf = data.leaves[1]
    assert leaf.frame is not None
    x, y = frame.decode(leaf.frame)
    assert x[:, 0].tolist() == list(leaf.indices)
    assert y.tolist() == [index % 3 for index in leaf.indices]


def test_a_tensor_dataset_is_sliced_to_the_same_rows() -> None:
    tensors = torch.randn(20, 3), torch.arange(20)
    fast = Source(TensorDataset(*tensors), None, 0).load(0, [3, 1, 2])

    class Slow(TensorDataset):
        pass

    slow = Source(Slow(*tensors), None, 0).load(0, [3, 1, 2])
    assert all(torch.equal(a, b) for a, b in zip(fast, slow, strict=True))


def test_nodes_that_hold_the_data_are_sent_no_frames() -> None:
    data = feeder(Random(), ship=False).load(0)
    assert all(leaf.frame is None and leaf.weight == 2.0 for leaf in data.leaves)

    class Counting(Random):
        def __getitem__(self, index: int) -> Any:
            raise AssertionError("the weight is known without loading")

    source = Source(Counting(), None, 0)
    by_samples = Feeder(PLAN, LeafLoader(source, Objective(torch.nn.MSELoss()), False))
    assert [leaf.weight for leaf in by_samples.load(0).leaves] == [2.0] * 4


def test_a_bad_item_stops_with_its_index() -> None:
    made = feeder(Bad())
    made.start()
    try:
        with pytest.raises(BadSample, match=r"dataset\[[37]\] raised OSError: file [37] is torn") as caught:
            [made.step(step).result(10) for step in range(PLAN.steps_per_epoch)]
        assert caught.value.index in (3, 7)
        assert 'on_bad_sample="quarantine"' in str(caught.value)
    finally:
        made.close()


def test_a_quarantined_item_is_left_out_for_good() -> None:
    made = feeder(Bad(), on_bad_sample="quarantine")
    found: dict[int, str] = {}
    seen: list[list[int]] = [[], []]
    for step in range(PLAN.num_steps):
        data = made.load(step)
        found |= data.quarantined
        seen[data.plan.epoch] += [index for leaf in data.leaves for index in leaf.indices]
        assert all(len(leaf.indices) == 2 for leaf in data.leaves[:-1])
    assert set(found) == {3, 7}
    assert "file 3 is torn" in found[3]
    assert sorted(seen[0]) == sorted(seen[1]) == [i for i in range(20) if i not in (3, 7)]


def test_steps_are_prepared_ahead_and_forgotten_behind() -> None:
    made = feeder(Random(), RunPlan(200, 8, 4, 1))
    made.start()
    try:
        for step in range(20):
            assert made.step(step).result(10).plan.step == step
            made.look_ahead(step)
            assert len(made._pending) <= 5
    finally:
        made.close()


NORMS = torch.tensor([0.3, 0.7, 1.1])


@pytest.mark.parametrize(
    ("objective", "targets"),
    [
        (Objective(), torch.tensor([0, 1, -100, 2] * 6)),
        (Objective(), torch.tensor([[0, -100], [1, 2], [-100, -100]] * 8)),
        (Objective(torch.nn.CrossEntropyLoss(ignore_index=2)), torch.tensor([0, 1, 2] * 8)),
        (Objective(torch.nn.CrossEntropyLoss(NORMS)), torch.tensor([0, 1, 2] * 8)),
        (Objective(torch.nn.CrossEntropyLoss()), torch.full((24, 3), 1 / 3)),
        (Objective(torch.nn.CrossEntropyLoss(reduction="sum")), torch.tensor([0, 1, 2] * 8)),
        (Objective(torch.nn.MSELoss()), torch.arange(24.0)),
        (Objective(weight=lambda batch: float(batch[1].sum())), torch.arange(24)),
    ],
)
def test_rows_gathered_for_many_leaves_are_what_each_leaf_loads(objective: Objective, targets: Any) -> None:
    load = LeafLoader(Source(TensorDataset(torch.randn(24, 5), targets), None, 0), objective, True)
    leaves = [(7, 3, 22), (0, 1, 2), (23, 11), (5,)]
    assert load.gathers
    assert load.gather(leaves) == [load(0, leaf) for leaf in leaves]
    assert load.gather([]) == []


def test_steps_gathered_ahead_are_those_of_the_plan() -> None:
    dataset = TensorDataset(torch.randn(26, 3), torch.arange(26) % 3)
    plan = RunPlan(26, 4, 2, 3)
    made, alone = feeder(dataset, plan), feeder(dataset, plan)
    made.start()
    try:
        made.step(0).result(10)
        made.quarantine(1, 9)
        alone.quarantine(1, 9)
        for step in range(plan.num_steps):
            assert made.step(step).result(10) == alone.load(step)
            made.look_ahead(step)
    finally:
        made.close()


def test_items_that_do_not_make_a_batch_are_named() -> None:
    class Ragged(Random):
        def __getitem__(self, index: int) -> Any:
            return torch.zeros(index + 1)

    with pytest.raises(UsageError, match=r"samples \[1, 2\] do not make one batch .*collate_fn"):
        Source(Ragged(), None, 0).load(0, [1, 2])


def test_only_map_style_datasets_have_indices() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter([])

    with pytest.raises(UsageError, match="map-style"):
        dataset_length(Stream())
    assert dataset_length([1, 2, 3]) == 3
