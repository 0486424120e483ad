"""A dataset that costs nothing: for benchmarks whose batches are ready before they are asked for."""

from __future__ import annotations

from torch.utils.data import Dataset


class Numbers(Dataset[int]):
    """As many samples as the batches have; each is its index."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> int:
        return index
