"""Files of arrays: NPY (mapped into memory), NPZ and Parquet. Nothing in them is ever unpickled."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from manyhands.errors import UsageError
from manyhands.split.data.columns import Columns, MappedFile, as_column, check_numbers
from manyhands.training.batch import TARGET_NAMES


def read_npy(path: Path) -> Columns:
    """Samples ``x``, the rows of one array, in its dtype."""
    try:
        head: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UsageError(f"{path} is no array of numbers: {error}") from error
    check_numbers(head.dtype, str(path))
    if head.ndim == 0:
        raise UsageError(f"{path} holds a single number: its first dimension must be the samples")
    return Columns([MappedFile(path)], is_bare=True)


def read_npz(path: Path) -> Columns:
    """Samples of its arrays, in the file's order, the target (``y``, ``labels``, ``targets``) last; one alone is x."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path} is no archive of arrays of numbers: {error}") from error
    if not arrays:
        raise UsageError(f"{path} holds no arrays")
    names = sorted(arrays, key=lambda name: name.lower() in TARGET_NAMES)
    return Columns([as_column(arrays[name], f"{path}[{name!r}]") for name in names], is_bare=len(names) == 1)


def read_parquet(path: Path) -> Columns:
    """Samples ``(x, y)``, y the last column; x is the others side by side, in the dtype that holds them all.

    Where a column holds lists (of one length) each column is an input of its own. UsageError names the column
    that holds no numbers or misses some.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise UsageError(
            f"reading {path} needs pyarrow, which is not installed: pip install 'manyhands[data]'"
        ) from error
    try:
        table = parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise UsageError(f"{path} is no Parquet file: {error}") from error
    if table.num_columns < 2:
        raise UsageError(
            f"{path} has {table.num_columns} columns: the last is the target, so at least two are needed"
        )
    columns = [_arrow_column(path, name, table.column(name)) for name in table.column_names]
    inputs = columns[:-1]
    if all(column.dim() == 1 for column in inputs):
        inputs = [torch.from_numpy(np.stack([column.numpy() for column in inputs], axis=1))]
    return Columns([*inputs, columns[-1]])


def _arrow_column(path: Path, name: str, values: Any) -> Tensor:
    import pyarrow

    where = f"{path}, column {name!r}"
    if values.null_count:
        missing = values.is_null().to_pylist().index(True)
        raise UsageError(f"{where}, row {missing}: the cell is empty: fill it in, or drop the row")
    if not (pyarrow.types.is_list(values.type) or pyarrow.types.is_fixed_size_list(values.type)):
        return as_column(values.to_numpy(), where)
    lists = [np.asarray(item) for item in values.to_numpy(zero_copy_only=False)]
    odd = next((at for at, item in enumerate(lists) if item.shape != lists[0].shape), None)
    if odd is not None:
        raise UsageError(
            f"{where}, row {odd}: a list of {len(lists[odd])} where the first has {len(lists[0])}: pad them"
        )
    return as_column(np.stack(lists), where)
