"""One dataset cut in two: samples to train on, and samples held back to validate with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from manyhands.errors import UsageError
from manyhands.split.data.columns import Columns
from manyhands.split.data.opening import dataset_length
from manyhands.split.data.streams import is_stream
from manyhands.training.seeds import derive


class Part(Dataset[Any]):
    """Some samples of `dataset`, numbered anew from 0."""

    def __init__(self, dataset: Any, indices: Sequence[int]) -> None:
        self.dataset = dataset
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[self.indices[index]]


def split_dataset(dataset: Any, val_split: float, seed: int = 0) -> tuple[Any, Any]:
    """Cut an opened dataset: ``round(val_split * length)`` samples, chosen by `seed`, are for validation.

    Returns (training, validation), each in the order of the whole. The same on every machine. UsageError where
    `val_split` is not between 0 and 1, one side would be empty, or the dataset is iterable.
    """
    if not isinstance(val_split, int | float) or not 0.0 < val_split < 1.0:
        raise UsageError(f"val_split is {val_split!r}: give a share of the samples, between 0 and 1, as 0.2")
    if is_stream(dataset):
        raise UsageError(
            f"val_split cannot cut {type(dataset).__name__}, which is iterable and has no indices: give val_dataset"
        )
    length = dataset_length(dataset)
    num_held = round(val_split * length)
    if not 0 < num_held < length:
        raise UsageError(
            f"val_split={val_split} of {length} samples leaves {length - num_held} to train on and {num_held} to "
            "validate with: both need one at least"
        )
    generator = torch.Generator().manual_seed(derive(seed, "split"))
    order = torch.randperm(length, generator=generator)
    held, kept = order[:num_held].sort().values, order[num_held:].sort().values
    return _part(dataset, kept), _part(dataset, held)


def _part(dataset: Any, indices: torch.Tensor) -> Any:
    if isinstance(dataset, Columns) and all(isinstance(column, torch.Tensor) for column in dataset.columns):
        return Columns([column[indices] for column in dataset.columns], is_bare=dataset.is_bare)
    return Part(dataset, indices.tolist())
