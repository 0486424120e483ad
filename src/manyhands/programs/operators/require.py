"""Preconditions that several families share, each a small function over a call's arguments.

A check returns a clause that finishes "node 7 (name): …", or None. All see meta tensors: shapes, strides and
dtypes, never values.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from manyhands.programs.operators.row import MAX_INT, MAX_RANK, MAX_RESULTS, Arguments, Check

MAX_WINDOW = 1 << 15
"""The largest kernel, stride, padding or dilation: kernels narrow them to 32 bits and multiply them."""


def is_integral(dtype: torch.dtype) -> bool:
    """Whether elements are whole numbers or bools."""
    return not dtype.is_floating_point and not dtype.is_complex


def listed(value: object) -> list[Tensor]:
    """The tensors of an argument or result: itself, its items, none."""
    if isinstance(value, Tensor):
        return [value]
    return [item for item in value if isinstance(item, Tensor)] if isinstance(value, list | tuple) else []


def size_problem(sizes: Sequence[int], least: int = 0) -> str | None:
    """Why `sizes` may not be a tensor's shape; products are Python's, so that none overflows."""
    if len(sizes) > MAX_RANK:
        return f"{len(sizes)} dimensions; at most {MAX_RANK} are allowed"
    if any(size < least for size in sizes):
        return f"a negative size in {list(sizes)}"
    if prod(max(size, 1) for size in sizes) > MAX_INT:
        return f"shape {list(sizes)} spans more than {MAX_INT} elements"
    return None


def sizes(name: str, least: int = 0) -> Check:
    """The list `name` is a shape; `least` is -1 where that stands for "as it is"."""
    return lambda a: size_problem(a[name], least)


def floating(*names: str) -> Check:
    """The tensors of these arguments, where given, have floating elements of one dtype."""

    def check(a: Arguments) -> str | None:
        tensors = [tensor for name in names for tensor in listed(a[name])]
        dtypes = {tensor.dtype for tensor in tensors}
        if any(is_integral(dtype) for dtype in dtypes) or len(dtypes) > 1:
            return f"{', '.join(names)} must be floating and of one dtype, not {text_of(dtypes)}"
        return None

    return check


def text_of(dtypes: set[torch.dtype]) -> str:
    """Dtypes as a sorted list in words."""
    return ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes)) or "nothing"


def indices(name: str) -> Check:
    """The tensor `name` holds whole numbers that may index; values are checked by the kernel itself."""

    def check(a: Arguments) -> str | None:
        dtype = a[name].dtype
        return None if dtype in (torch.int64, torch.int32) else f"{name} must be int64 or int32, not {dtype}"

    return check


def between(name: str, low: float, high: float) -> Check:
    """The number `name`, where given, lies in [low, high]."""

    def check(a: Arguments) -> str | None:
        value = a[name]
        return None if value is None or low <= value <= high else f"{name} is {value}, not in {low} to {high}"

    return check


def windows(low: int, *names: str) -> Check:
    """Each int of these lists lies in [low, 2^15]."""

    def check(a: Arguments) -> str | None:
        for name in names:
            if any(not low <= value <= MAX_WINDOW for value in a[name]):
                return f"{name} is {a[name]}, not in {low} to {MAX_WINDOW}"
        return None

    return check


def rank(name: str, *allowed: int) -> Check:
    """The tensor `name` has one of these numbers of dimensions."""

    def check(a: Arguments) -> str | None:
        found = a[name].dim()
        return (
            None
            if found in allowed
            else f"{name} has {found} dimensions, not {' or '.join(map(str, allowed))}"
        )

    return check


def num_results(name: str, count: int) -> str | None:
    """Why a split into `count` results is too many."""
    return f"{name} makes {count} results; at most {MAX_RESULTS} are allowed" if count > MAX_RESULTS else None


def reduction(a: Arguments) -> str | None:
    """A loss's reduction is none, mean or sum; kernels take any other number as they like."""
    return None if a["reduction"] in (0, 1, 2) else f"reduction is {a['reduction']}, not 0, 1 or 2"


def vector(tensor: Tensor | None, size: int) -> bool:
    """Whether `tensor` is absent, or contiguous with shape (size,)."""
    return tensor is None or (tuple(tensor.shape) == (size,) and tensor.is_contiguous())
