"""Samples that are rows of arrays: tensors in memory, or files mapped into it.

Rows of many samples are taken at once, and are what ``default_collate`` makes of the single ones. Worker processes
share the memory of both kinds: a tensor's is moved to where they see it, a file is mapped by each of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from manyhands.errors import UsageError
from manyhands.tensors import dtypes


class Column(Protocol):
    """One part of every sample; ``column[index]`` is that of one, ``column[indices]`` (1-d int64) of several."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def __getitem__(self, at: Any) -> Tensor:
        """A tensor without, or with, a first dimension of samples."""
        ...


class MappedFile:
    """An ``.npy`` file as a column: read where it is touched, never whole; it must not change meanwhile."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._array = self._map()

    def _map(self) -> npt.NDArray[Any]:
        array: npt.NDArray[Any] = np.load(self.path, mmap_mode="r")
        return array

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, at: Any) -> Tensor:
        # A copy, in this machine's byte order: torch takes neither read-only memory nor the other order.
        rows = np.array(self._array[at], dtype=self._array.dtype.newbyteorder("="))
        return torch.from_numpy(rows)

    def __getstate__(self) -> Path:
        return self.path

    def __setstate__(self, path: Path) -> None:
        self.path = path
        self._array = self._map()


class Columns(Dataset[Any]):
    """Samples ``(a[i], b[i], ...)``, of columns of one length; with `is_bare`, of the only column ``a[i]``.

    UsageError where lengths differ, a column has no first dimension, or there is no sample.
    """

    def __init__(self, columns: Sequence[Column], *, is_bare: bool = False) -> None:
        lengths = [len(column) for column in columns]
        if len(set(lengths)) != 1:
            raise UsageError(
                f"arrays of one dataset must have as many rows each, and these have {lengths}: cut them to the same"
            )
        if lengths[0] == 0:
            raise UsageError("the dataset is empty: its arrays have 0 rows")
        self.columns = tuple(columns)
        self.is_bare = is_bare

    def __len__(self) -> int:
        return len(self.columns[0])

    def __getitem__(self, index: int) -> Any:
        sample = tuple(column[index] for column in self.columns)
        return sample[0] if self.is_bare else sample

    def rows(self, indices: Sequence[int]) -> Any:
        """The batch of these samples, in this order: a list of tensors ``(samples, ...)``, or the only one."""
        chosen = torch.tensor(indices, dtype=torch.int64)
        rows = [column[chosen] for column in self.columns]
        return rows[0] if self.is_bare else rows


def as_column(values: Any, name: str) -> Tensor:
    """An array of numbers as a column, not copied where torch can take it as it is.

    UsageError where it holds no numbers, or has no first dimension.
    """
    column = values.detach() if isinstance(values, Tensor) else _from_numpy(np.asarray(values), name)
    if column.dim() == 0:
        raise UsageError(f"{name} is a single number: give an array with the samples on its first dimension")
    return column


def check_numbers(dtype: np.dtype[Any], name: str) -> None:
    """UsageError unless arrays of `dtype` can become tensors."""
    if dtype.newbyteorder("=") not in dtypes.NUMPY.values():
        raise UsageError(f"{name} holds elements of {dtype}, and a tensor holds numbers: convert it first")


def _from_numpy(array: npt.NDArray[Any], name: str) -> Tensor:
    check_numbers(array.dtype, name)
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    needs_copy = not native.flags.writeable or any(step < 0 for step in native.strides)
    return torch.from_numpy(native.copy() if needs_copy else native)
