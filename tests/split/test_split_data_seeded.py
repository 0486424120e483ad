"""The local twin: random samples that are the same whoever makes them, and streams read by position."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from manyhands.split.data.streams import EndOfStream, Reader
from manyhands.split.jobs import Work
from manyhands.split.making.assembler import Assembler
from manyhands.split.recipe import Recipe, only_seeded
from manyhands.split.twin import seeded


class Augmented(Dataset[Any]):
    """Draws from all three generators."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Any:
        return torch.rand(3) + np.random.rand() + random.random(), index


class Shuffled(IterableDataset[Any]):
    """A stream that draws its order, and each sample."""

    def __iter__(self) -> Iterator[Any]:
        for number in torch.randperm(10).tolist():
            yield torch.tensor([number, torch.rand(1).item(), random.random()])


def noisy(x: torch.Tensor, y: torch.Tensor) -> Any:
    return x + torch.randn_like(x) * x.mean(0), y


def same(batches: Any, others: Any) -> bool:
    return all(
        torch.equal(a, b)
        for one, other in zip(batches, others, strict=True)
        for a, b in zip(one, other, strict=True)
    )


def test_samples_are_their_own_whatever_was_drawn_before() -> None:
    twin = seeded(Augmented(), 3)
    first = twin[4][0]
    random.random(), torch.rand(5)
    assert torch.equal(twin[4][0], first)
    assert torch.equal(seeded(Augmented(), 3)[np.int64(4)][0], first)
    assert not torch.equal(twin[5][0], first)
    assert not torch.equal(seeded(Augmented(), 2)[4][0], first)
    twin.set_epoch(1)
    assert not torch.equal(twin[4][0], first)


def test_the_generators_are_put_back() -> None:
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    expected = torch.rand(1).item(), np.random.rand(), random.random()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    seeded(Augmented())[0]
    assert (torch.rand(1).item(), np.random.rand(), random.random()) == expected


@pytest.mark.parametrize("seeding", [None, only_seeded])
def test_loaders_make_the_batches_of_the_twin(seeding: Any) -> None:
    twin = seeded(Augmented(), 5, preprocessing_fn=noisy)
    recipe = Recipe(Augmented(), 5, preprocessing_fn=noisy)
    assembler = Assembler({"train": recipe}) if seeding is None else Assembler({"train": recipe}, seeding)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0)).tolist()
    cuts = [tuple(order[start : start + 6]) for start in range(0, 20, 6)]
    for epoch in (0, 3):
        twin.set_epoch(epoch)
        local = list(DataLoader(twin, batch_sampler=cuts, collate_fn=twin.collate))
        made = [
            assembler.make(Work("train", epoch, at, cut)).batch for at, cut in reversed(list(enumerate(cuts)))
        ]
        assert same(local, reversed(made))


def test_workers_of_a_local_dataloader_change_no_bit_and_hear_of_the_epoch() -> None:
    twin = seeded(Augmented(), 5, preprocessing_fn=noisy)
    workers = DataLoader(
        twin,
        6,
        collate_fn=twin.collate,
        num_workers=1,
        persistent_workers=True,
        multiprocessing_context="spawn",
    )
    for epoch in (0, 1):
        twin.set_epoch(epoch)
        assert same(workers, DataLoader(twin, 6, collate_fn=twin.collate))
    del workers


def test_a_stream_is_its_own_by_position() -> None:
    twin = seeded(Shuffled(), 5)
    first, second = list(twin), list(twin)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert sorted(int(sample[0]) for sample in first) == list(range(10))
    twin.set_epoch(1)
    assert [int(sample[0]) for sample in twin] != [int(sample[0]) for sample in first]


def test_loaders_make_the_stream_of_the_twin_from_any_place() -> None:
    twin = seeded(Shuffled(), 5)
    local = list(DataLoader(twin, 4, collate_fn=twin.collate))
    assembler = Assembler({"train": Recipe(Shuffled(), 5)})
    works = [Work("train", 0, at, tuple(range(at * 4, min(10, at * 4 + 4)))) for at in range(3)]
    for at in (0, 2, 1, 2):
        assert torch.equal(assembler.make(works[at]).batch, local[at])


def test_a_stream_that_ends_early_says_so_sample_by_sample() -> None:
    made = Assembler({"train": Recipe(Shuffled())}).make(Work("train", 0, 2, (8, 9, 10, 11)))
    assert made.indices == (8, 9)
    assert [fault.index for fault in made.faults] == [10, 11]
    assert "the stream ended after 10 samples" in made.faults[0].error


def test_a_reader_opens_a_stream_anew_only_to_go_back() -> None:
    opened: list[int] = []

    class Stream:
        def __iter__(self) -> Iterator[int]:
            opened.append(1)
            return iter(range(5))

    reader = Reader(Stream(), lambda index: only_seeded(index + 1))
    assert [reader.read(at) for at in (0, 1, 3, 4)] == [0, 1, 3, 4]
    assert len(opened) == 1
    assert reader.read(2) == 2
    assert len(opened) == 2
    with pytest.raises(EndOfStream, match="after 5"):
        reader.read(7)


@pytest.mark.parametrize(
    ("items", "function", "expected"),
    [
        ([(1, 2)], lambda x, y: (x * 2, y), [2, 2]),
        ([(1, 2, 3)], lambda a, b, y: (b, a, y), [2, 1, 3]),
        ([1], lambda x: x + 1, 2),
        ([1], lambda x, y: (x + 1, y), 2),
        ([{"a": 1}], lambda batch: batch["a"], 1),
    ],
)
def test_preprocessing_gets_the_parts_of_a_batch(items: Any, function: Any, expected: Any) -> None:
    batch = Recipe(items, preprocessing_fn=function).batch(0, 0, items)
    parts = batch if isinstance(expected, list) else [batch]
    assert [part.item() for part in parts] == (expected if isinstance(expected, list) else [expected])
