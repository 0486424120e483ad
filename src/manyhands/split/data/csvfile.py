"""CSV files of numbers: the last column is the target, the others are the input.

numpy's parser reads them; where it stumbles the file is read again, slowly, for the row and column to name.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from manyhands.errors import UsageError
from manyhands.split.data.columns import Columns

_SHOWN_CHARACTERS = 40
_TARGET_TEXT = "U32"
"""Longer than any 64-bit whole number."""


def read(path: Path) -> Columns:
    """Samples ``(x, y)``: x float32 ``(columns - 1,)``; y int64 where each is written whole, else float32.

    The first line is a header where one of its cells is no number. UsageError names the row (as an editor counts
    lines) and the column of what is ragged, not a number, or empty.
    """
    header: list[str] = []
    try:
        header = _header(path)
        table = _parse(path, header, "f8")
        targets = _parse(path, header, _TARGET_TEXT, last_only=True)[:, 0]
    except UsageError:
        raise
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is no text in UTF-8: {error}") from error
    except ValueError as error:
        raise _first_fault(path, header) or UsageError(f"{path}: {error}") from error
    if table.shape[1] < 2:
        raise UsageError(
            f"{path} has {table.shape[1]} column: the last one is the target, so at least two are needed"
        )
    return Columns([torch.from_numpy(table[:, :-1].astype(np.float32)), torch.from_numpy(_targets(targets))])


def _header(path: Path) -> list[str]:
    """The names of the columns; empty where the file begins with numbers."""
    first = next(_lines(path), None)
    if first is None:
        raise UsageError(f"{path} is empty")
    cells = next(csv.reader([first]))
    return [] if all(_is_number(cell) or not cell.strip() for cell in cells) else cells


def _lines(path: Path) -> Iterator[str]:
    """The lines that are not blank."""
    with path.open(encoding="utf-8-sig") as file:
        yield from (line for line in file if line.strip())


def _parse(path: Path, header: list[str], dtype: str, *, last_only: bool = False) -> npt.NDArray[Any]:
    lines = _lines(path)
    first = next(lines)
    if header:
        first = next(lines, "")
        if not first:
            raise UsageError(f"{path} has a header and no rows")
    columns = -1 if last_only else None
    table: npt.NDArray[Any] = np.loadtxt(
        chain([first], lines), dtype, comments=None, delimiter=",", quotechar='"', usecols=columns, ndmin=2
    )
    return table


def _targets(texts: npt.NDArray[np.str_]) -> npt.NDArray[Any]:
    try:
        return texts.astype(np.int64)
    except (ValueError, OverflowError):
        return texts.astype(np.float32)


def _first_fault(path: Path, header: list[str]) -> UsageError | None:
    """What is wrong first, with its place."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        width = len(header)
        for row in reader:
            if not row or (header and row == header):
                continue
            width = width or len(row)
            if len(row) != width:
                return UsageError(
                    f"{path}, row {reader.line_num}: {len(row)} columns where the rows before have {width}"
                )
            for at, cell in enumerate(row):
                if not _is_number(cell):
                    return UsageError(
                        f"{path}, row {reader.line_num}, column {_column(header, at)}: {_shown(cell)}"
                    )
    return None


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell  # Python reads 1_000 as a number, and numpy does not


def _column(header: list[str], at: int) -> str:
    return f"{at + 1} ({header[at]!r})" if header else str(at + 1)


def _shown(cell: str) -> str:
    if not cell.strip():
        return "the cell is empty: fill it in, or drop the row"
    return f"{cell[:_SHOWN_CHARACTERS]!r} is not a number: encode it as one, or drop the column"
