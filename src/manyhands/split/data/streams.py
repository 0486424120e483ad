"""Iterable datasets, read in their own order: sample number n is the n-th that ``__iter__`` gives.

What holds for them. Each loader reads the whole stream in one worker and makes only the batches it was asked for,
so several loaders share the preprocessing, not the reading. Where ``__iter__`` gives the same samples each time,
every sample is used exactly once an epoch, also when a loader dies: another one reads up to the lost place again.
Where it does not (a live feed, an order drawn outside the seeded generators), samples may be missed or come twice
after a death or with a second loader. There is no shuffling but the stream's own. ``get_worker_info()`` is None.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch.utils.data import IterableDataset


class Seeding(Protocol):
    """Sets the generators for the block that it opens, by the sample that is read there."""

    def __call__(self, index: int) -> AbstractContextManager[None]:
        """A block in which sample `index` is read; -1 is the making of the iterator."""
        ...


def is_stream(dataset: Any) -> bool:
    """Whether a dataset has no indices and is read in its own order."""
    if isinstance(dataset, IterableDataset):
        return True
    return hasattr(dataset, "__iter__") and not hasattr(dataset, "__getitem__")


class Reader:
    """One pass over a stream, which can be asked for any sample: what comes before is read and dropped."""

    def __init__(self, stream: Any, seeding: Seeding) -> None:
        self._stream = stream
        self._seeding = seeding
        self._samples: Iterator[Any] | None = None
        self._position = 0

    def read(self, index: int) -> Any:
        """Sample `index`. EndOfStream where there are fewer; whatever else the stream raises passes through."""
        if self._samples is None or index < self._position:
            with self._seeding(-1):
                self._samples, self._position = iter(self._stream), 0
        while self._position < index:
            try:
                self._next(self._samples)
            except EndOfStream:
                raise
            except Exception:  # noqa: BLE001, S112 - a sample that is not asked for: whoever was told of it
                continue
        return self._next(self._samples)

    def _next(self, samples: Iterator[Any]) -> Any:
        position = self._position
        try:
            with self._seeding(position):
                self._position += 1
                return next(samples)
        except StopIteration:
            self._position = position
            raise EndOfStream(position) from None


class EndOfStream(Exception):
    """A stream ended after `count` samples."""

    def __init__(self, count: int) -> None:
        super().__init__(f"the stream ended after {count} samples")
        self.count = count
