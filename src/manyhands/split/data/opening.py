"""What a user gives as a dataset, told apart once: a torch Dataset, arrays, a path, an iterable.

::

    (X, y)                       arrays                       (x, y)
    "train.csv", "train.parquet" the last column is y         (x, y)
    "train.npz"                  its arrays, y the last       (x, y), (a, b, y), x
    "train.npy"                  one array, mapped            x
    IterableDataset, iterable    read in its own order        whatever it gives
    anything with [] and len     map-style                    whatever it gives
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import TensorDataset

from manyhands.errors import UsageError
from manyhands.split.data import csvfile, files
from manyhands.split.data.columns import Columns, as_column
from manyhands.split.data.streams import is_stream

logger = logging.getLogger(__name__)

_READERS = {
    ".csv": csvfile.read,
    ".npy": files.read_npy,
    ".npz": files.read_npz,
    ".parquet": files.read_parquet,
}


def open_dataset(given: Any, name: str = "dataset") -> Any:
    """A dataset with indices, or an iterable one, from whatever the table above lists.

    UsageError, beginning with `name`, where it is none of these, a file is missing or wrong, or it is empty.
    """
    if isinstance(given, str | os.PathLike):
        return _open_path(Path(given), name)
    if _is_pair_of_arrays(given):
        return Columns([as_column(part, f"{name}[{at}]") for at, part in enumerate(given)])
    if type(given) is TensorDataset:
        return Columns(given.tensors)
    if isinstance(given, Iterator):
        raise UsageError(
            f"{name} is a {type(given).__name__}, which can be read only once: give an IterableDataset, whose "
            "__iter__ begins anew each epoch"
        )
    is_map = hasattr(given, "__getitem__") and not isinstance(given, Mapping | bytes)
    if not is_stream(given) and not is_map:
        raise UsageError(
            f"{name} is a {type(given).__name__}: give a torch Dataset, a tuple of two arrays (X, y), or the path of "
            f"a {', '.join(_READERS)} file"
        )
    return given


def dataset_length(dataset: Any, name: str = "dataset") -> int:
    """Number of samples of an opened dataset; an iterable one without a length is read once to count them.

    UsageError where there is none, or no way to know.
    """
    if hasattr(dataset, "__len__"):
        try:
            length = len(dataset)
        except (TypeError, NotImplementedError) as error:
            raise _no_length(dataset, name) from error
    elif is_stream(dataset):
        logger.info("counting the samples of %s: give it a __len__ to spare this", type(dataset).__name__)
        length = sum(1 for _ in dataset)
    else:
        raise _no_length(dataset, name)
    if length <= 0:
        raise UsageError(f"{name} is empty: it has {length} samples")
    return length


def _no_length(dataset: Any, name: str) -> UsageError:
    return UsageError(
        f"{name} ({type(dataset).__name__}) has no length, and its batches are leased by number: give it a __len__"
    )


def _is_pair_of_arrays(given: Any) -> bool:
    """Whether it is (X, y), and no list of two samples."""
    if not isinstance(given, tuple | list) or len(given) != 2:
        return False
    if isinstance(given, tuple):
        return not any(isinstance(part, str | tuple | Mapping) for part in given)
    return all(isinstance(part, np.ndarray | Tensor) and part.ndim > 0 for part in given)


def _open_path(path: Path, name: str) -> Columns:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise UsageError(f"{name}: {path} is no {', '.join(_READERS)} file")
    if not path.is_file():
        raise UsageError(f"{name}: there is no file {path.absolute()}")
    return reader(path)
