"""New tensors of known values. What is made uninitialised has no row; devices are never received."""

from __future__ import annotations

from math import ceil, isfinite
from typing import Final

import torch
from torch import Tensor

from manyhands.programs.operators import infer, require
from manyhands.programs.operators.row import MAX_INT, Arguments, Row, row, rows


def _count(a: Arguments) -> str | None:
    """How many numbers a range has, counted before torch does."""
    step = a.get("step", 1)
    if step == 0:
        return "step is 0"
    number = (a["end"] - a.get("start", 0)) / step
    if not isfinite(number) or not 0 <= ceil(number) <= MAX_INT:
        return f"a range of {number:.3g} numbers"
    return None


def _square(a: Arguments) -> str | None:
    return require.size_problem([a["n"], a.get("m", a["n"])])


def _steps(a: Arguments) -> str | None:
    return require.size_problem([a["steps"]])


def _sized(a: Arguments) -> Tensor:
    own = a.get("self")
    return infer.blank(a["size"], a["dtype"] or (torch.float32 if own is None else own.dtype))


def _filled(a: Arguments) -> Tensor:
    own = a.get("self")
    return infer.blank(
        a["size"], a["dtype"] or (infer.promoted(a["fill_value"]) if own is None else own.dtype)
    )


def _alike(a: Arguments) -> Tensor:
    return infer.blank(a["self"].shape, a["dtype"] or a["self"].dtype)


def _scalar(a: Arguments) -> Tensor:
    return infer.blank((), a["dtype"] or torch.float32)


def _ranged(a: Arguments) -> Tensor:
    start, end, step = a.get("start", 0), a["end"], a.get("step", 1)
    is_float = any(isinstance(value, float) for value in (start, end, step))
    exact = (end - start) / step if is_float else -((start - end) // step)
    return infer.blank([ceil(exact)], a["dtype"] or (torch.float32 if is_float else torch.int64))


def _spaced(a: Arguments) -> Tensor:
    return infer.blank([a["steps"]], a["dtype"] or torch.float32)


def _identity(a: Arguments) -> Tensor:
    return infer.blank([a["n"], a.get("m", a["n"])], a["dtype"] or torch.float32)


_SIZE: Final = require.sizes("size")

ROWS: Final[tuple[Row, ...]] = (
    *rows("zeros ones new_zeros new_ones", _SIZE, infer=_sized),
    *rows("full new_full", _SIZE, infer=_filled, infinite=("fill_value",)),
    *rows("zeros_like ones_like", infer=_alike),
    row("full_like.default", infer=_alike, infinite=("fill_value",)),
    row("scalar_tensor.default", infer=_scalar, infinite=("s",)),
    *rows("arange arange.start arange.start_step", _count, infer=_ranged),
    row("linspace.default", _steps, infer=_spaced),
    *rows("eye eye.m", _square, infer=_identity),
)
