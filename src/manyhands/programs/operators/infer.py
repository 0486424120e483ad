"""The shapes and dtypes of results, computed by us.

torch has its own for the meta device, but most of them are Python that imports torch's compiler when first
called (a second, 800 modules, thousands of files opened) and take 0.2 ms each afterwards, where these take
microseconds. They may let pass what an operator then refuses with an exception; they must never differ from
what it returns, and a fuzz compares the two for every row.

Tensors here are blanks on the meta device: a shape, strides and a dtype, without memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from manyhands.programs.operators.row import MAX_RANK, Arguments

META: Final = torch.device("meta")

Infer = Callable[[Arguments], Any]


def blank(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A contiguous tensor without memory; ValueError where no tensor may have `shape`."""
    if any(size < 0 for size in shape):
        raise ValueError(f"a negative size in {list(shape)}")
    check_size(shape)
    return torch.empty(tuple(shape), dtype=dtype, device=META)


def check_size(shape: Sequence[int]) -> None:
    """ValueError where a shape spans more than 2^40 elements or 8 dimensions."""
    span = 1
    for size in shape:
        span *= max(size, 1)
    if span > 1 << 40 or len(shape) > MAX_RANK:
        raise ValueError(f"shape {list(shape)} spans more than {1 << 40} elements or {MAX_RANK} dimensions")


def wrapped(dim: int, num_dims: int) -> int:
    """`dim` counted from the front; ValueError where it is none of `num_dims` (a scalar counts as one)."""
    span = max(num_dims, 1)
    if not -span <= dim < span:
        raise ValueError(f"dim is {dim} of {num_dims}")
    return dim % span


def broadcast(*shapes: Sequence[int]) -> list[int]:
    """The shape to which all stretch; ValueError where two sizes differ and neither is 1."""
    result: list[int] = []
    for at in range(-max(map(len, shapes)), 0):
        size = 1
        for shape in shapes:
            own = shape[at] if -at <= len(shape) else 1
            if own != 1:
                if size not in (1, own):
                    raise ValueError(f"shapes {[list(shape) for shape in shapes]} do not broadcast")
                size = own
        result.append(size)
    return result


def promoted(*values: Any) -> torch.dtype:
    """The result type of tensors and numbers: dimensions weigh more than scalars, and these than numbers."""
    held = values[0]
    for value in values[1:]:
        dtype = torch.result_type(held, value)
        ranks = [item.dim() for item in (held, value) if isinstance(item, Tensor)]
        if not ranks:
            held = torch.empty((), dtype=dtype, device=META)
            continue
        held = torch.empty((1,) * min(max(ranks), 1), dtype=dtype, device=META)
    if isinstance(held, Tensor):
        return held.dtype
    return torch.result_type(held, held)


def floated(dtype: torch.dtype) -> torch.dtype:
    """`dtype`, or float32 for whole numbers."""
    return dtype if dtype.is_floating_point else torch.float32


def same(name: str = "self") -> Infer:
    """Like the tensor `name`."""
    return lambda a: blank(a[name].shape, a[name].dtype)


def itself(a: Arguments) -> Tensor:
    """In place: the tensor that was written to."""
    written: Tensor = a["self"]
    others = [value.shape for value in a.values() if isinstance(value, Tensor)]
    if broadcast(*others) != list(written.shape):
        raise ValueError(f"{[list(shape) for shape in others]} do not fit in place")
    return written


def elementwise(*names: str, gives: Callable[[torch.dtype], torch.dtype] = lambda dtype: dtype) -> Infer:
    """Operands broadcast and promoted; `gives` makes the result's dtype of the promoted one."""

    def infer(a: Arguments) -> Tensor:
        values = [a[name] for name in names if a[name] is not None]
        shapes = [value.shape for value in values if isinstance(value, Tensor)]
        return blank(broadcast(*shapes), gives(promoted(*values)))

    return infer


def boolean(_dtype: torch.dtype) -> torch.dtype:
    """What comparisons give."""
    return torch.bool


def reduced(shape: Sequence[int], dims: int | Sequence[int] | None, keepdim: bool) -> list[int]:
    """`shape` without `dims`, or with 1 in their place; no dims are all of them."""
    given = [dims] if isinstance(dims, int) else list(dims or range(len(shape)))
    gone = {wrapped(dim, len(shape)) for dim in given}
    if len(gone) != len(given):
        raise ValueError(f"a dimension stands twice in {given}")
    if keepdim:
        return [1 if at in gone else size for at, size in enumerate(shape)]
    return [size for at, size in enumerate(shape) if at not in gone]


def along(gives: Callable[[torch.dtype], torch.dtype] = lambda dtype: dtype, count: int = 1) -> Infer:
    """A reduction of `self` along `dim`, where the operator has one; `dtype`, where given, is the result's."""

    def infer(a: Arguments) -> Any:
        own: Tensor = a["self"]
        shape = reduced(own.shape, a.get("dim"), bool(a.get("keepdim")))
        dtype = a.get("dtype") or gives(own.dtype)
        return blank(shape, dtype) if count == 1 else [blank(shape, dtype) for _ in range(count)]

    return infer


def summed(dtype: torch.dtype) -> torch.dtype:
    """Sums of whole numbers are int64."""
    return dtype if dtype.is_floating_point else torch.int64
