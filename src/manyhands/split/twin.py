"""The local twin: a dataset whose samples a local ``DataLoader`` makes to the bit as the loaders of a job do.

::

    twin = seeded(dataset, seed=0)
    for epoch in range(10):
        twin.set_epoch(epoch)
        for x, y in DataLoader(twin, batch_size=64, collate_fn=twin.collate, num_workers=2): ...
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset

from manyhands.split.data.opening import dataset_length, open_dataset
from manyhands.split.data.streams import EndOfStream, Reader, is_stream
from manyhands.split.recipe import CollateFn, PreprocessingFn, Recipe
from manyhands.training.batch import Batch
from manyhands.training.seeds import generators


class _Twin:
    """A recipe and the epoch that it is at."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        # Workers of a DataLoader that outlive an epoch hear of the next one through shared memory only.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._first = 0

    @property
    def epoch(self) -> int:
        """The epoch that samples are made for."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Make the samples of `epoch` from now on, in every worker; epoch 0 is the first."""
        self._epoch.fill_(epoch)

    def collate(self, samples: Sequence[Any]) -> Batch:
        """What a ``DataLoader`` takes as its ``collate_fn`` where the job has one, or a ``preprocessing_fn``."""
        return self._recipe.batch(self.epoch, self._first, samples)


class SeededDataset(_Twin, Dataset[Any]):
    """A map-style twin; see :func:`seeded`."""

    def __len__(self) -> int:
        return dataset_length(self._recipe.dataset)

    def __getitem__(self, index: Any) -> Any:
        return self._recipe.sample(self.epoch, operator.index(index))

    def __getitems__(self, indices: Sequence[Any]) -> list[Any]:
        """The samples of a batch, as a ``DataLoader`` asks for them; `collate` follows in the same process."""
        self._first = operator.index(indices[0])
        return [self[index] for index in indices]


class SeededStream(_Twin, IterableDataset[Any]):
    """An iterable twin; see :func:`seeded`."""

    def __iter__(self) -> Iterator[Any]:
        reader, epoch, index = Reader(self._recipe.dataset, self._seeding), self.epoch, 0
        self._first = 0
        while self.epoch == epoch:
            try:
                sample = reader.read(index)
            except EndOfStream:
                return
            yield sample
            index += 1

    def collate(self, samples: Sequence[Any]) -> Batch:
        """As for a map-style twin: batches follow each other here."""
        batch = super().collate(samples)
        self._first += len(samples)
        return batch

    def _seeding(self, index: int) -> AbstractContextManager[None]:
        return generators(self._recipe.item_seed(self.epoch, index))


def seeded(
    dataset: Any,
    seed: int = 0,
    preprocessing_fn: PreprocessingFn | None = None,
    collate_fn: CollateFn | None = None,
) -> SeededDataset | SeededStream:
    """`dataset` with each sample made under generators set from (`seed`, epoch, index), and put back after.

    It works under a ``DataLoader`` with any number of workers, and gives the same samples with all of them. Give its
    ``collate`` to the DataLoader where there is a `preprocessing_fn` or `collate_fn`. UsageError as for
    ``CPULoader.setup_dataset``.
    """
    recipe = Recipe(open_dataset(dataset), seed, collate_fn, preprocessing_fn)
    return SeededStream(recipe) if is_stream(recipe.dataset) else SeededDataset(recipe)
