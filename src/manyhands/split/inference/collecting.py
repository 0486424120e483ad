"""The result of an inference in memory: one array a column, filled as batches come, and what it really takes.

Each array is made once, for as many rows as the dataset has, and cut at the end: pages that no row was written to
never take memory, and nothing is copied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from manyhands.split.inference.wishes import Columns, check_alike

Result = dict[str, Any]
BYTES_PER_MB = 1e6
_FIRST_ROWS = 4096


class Sink(Protocol):
    """Where the batches of an inference go, in the order of their sequence."""

    @property
    def next_sequence(self) -> int:
        """The first batch that is not in here: where to begin, and where a broken run goes on."""
        ...

    def add(self, samples: int, columns: Columns) -> None:
        """Take the next batch, of so many samples before the filter; StorageError where a disk does not."""
        ...

    def finish(self) -> Result:
        """The result of all batches."""
        ...

    def close(self) -> None:
        """Give up files; safe to call twice. What was committed stays."""
        ...


@dataclass
class InMemory:
    """A sink that keeps every column in memory."""

    config: Mapping[str, Any]
    num_samples: int | None = None
    """Rows to make room for; None where the dataset has no length."""
    with_details: bool = False
    next_sequence: int = 0
    _samples: int = 0
    _rows: int = 0
    _arrays: Columns = field(default_factory=dict)

    def add(self, samples: int, columns: Columns) -> None:
        """Copy the next batch behind the ones before."""
        rows = len(columns.get("indices", ()))
        if columns:
            for name, array in self._arrays.items():
                check_alike(columns, name, array.dtype, array.shape[1:])
        for name, column in columns.items():
            if name not in self._arrays:
                room = self.num_samples or _FIRST_ROWS
                self._arrays[name] = np.empty((room, *column.shape[1:]), column.dtype)
            array = self._arrays[name]
            if self._rows + rows > len(array):
                array.resize((max(2 * len(array), self._rows + rows), *array.shape[1:]), refcheck=False)
            array[self._rows : self._rows + rows] = column
        self._rows += rows
        self._samples += samples
        self.next_sequence += 1

    def finish(self) -> Result:
        """Cut the arrays to the rows there are."""
        for array in self._arrays.values():
            array.resize((self._rows, *array.shape[1:]), refcheck=False)
        columns = dict(self._arrays)
        if self.with_details:
            columns["detailed_results"] = _details(columns)
        return result_of(columns, self._samples, self.next_sequence, self.config)

    def close(self) -> None:
        """Nothing is open."""


def result_of(columns: Columns, samples: int, batches: int, config: Mapping[str, Any]) -> Result:
    """What ``run_inference`` returns."""
    return {
        "total_samples": samples,
        "total_batches": batches,
        "kept_samples": len(columns["indices"]) if "indices" in columns else 0,
        **columns,
        "estimated_memory_mb": sum(array.nbytes for array in columns.values()) / BYTES_PER_MB,
        "config": dict(config),
    }


def _details(columns: Columns) -> np.ndarray[Any, Any]:
    """One record a row: ``details[i]["prediction"]``; a structured array, as small as its columns."""
    names = {"indices": "index", "predictions": "prediction", "confidences": "confidence"}
    names |= {"top_k_indices": "top_k_indices", "top_k_probabilities": "top_k_probabilities"}
    fields = [(new, columns[name]) for name, new in names.items() if name in columns]
    details = np.empty(
        len(columns["indices"]), dtype=[(name, column.dtype, column.shape[1:]) for name, column in fields]
    )
    for name, column in fields:
        details[name] = column
    return details


@dataclass
class InOrder:
    """Puts batches that come from several trainers into the order of their sequence, for a sink.

    What is early waits here. It is not said to be kept, so each trainer bounds how much that may be.
    """

    sink: Sink
    _early: dict[int, tuple[int, Columns]] = field(default_factory=dict)

    def add(self, sequence: int, samples: int, columns: Columns) -> int:
        """Take batch number `sequence`, once; the first batch that the sink does not have."""
        if sequence >= self.sink.next_sequence:
            self._early[sequence] = (samples, columns)
        while self.sink.next_sequence in self._early:
            self.sink.add(*self._early.pop(self.sink.next_sequence))
        return self.sink.next_sequence
