"""Floats that travel narrower than they are, and become themselves again on the device.

``uint8`` is for pictures: whole numbers from 0 to 255 travel as they are, and anything else from 0 to 1 in steps of
1/255, to the nearest. Pixels that came from bytes lose nothing; others lose at most 1/510. ``float16`` keeps 11 bits
and reaches 65504, ``bfloat16`` keeps 8 bits and reaches as far as float32. What would not fit is refused, never
clipped. Targets, and whatever is no float, travel as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from manyhands.errors import ProtocolError, UsageError
from manyhands.split.jobs import Width
from manyhands.tensors import dtypes
from manyhands.training.batch import TARGET_NAMES, Batch

NARROW: Final = ("uint8", "float16", "bfloat16", "float32")
"""What `transfer_dtype` may be."""
_STEPS: Final = 255
_WIDE: Final = frozenset(name for name, dtype in dtypes.DTYPES.items() if dtype.is_floating_point)
"""What a narrowed tensor may become again."""

Widths = tuple[Width | None, ...]
"""For each tensor of a batch, in order: how to widen it, None where it is as it was."""


def check_transfer_dtype(name: str | None) -> None:
    """UsageError unless `name` is None or one of `NARROW`."""
    if name is not None and name not in NARROW:
        raise UsageError(
            f"transfer_dtype is {name!r}: give None, {', '.join(map(repr, NARROW[:-1]))} or {NARROW[-1]!r}"
        )


def narrow(batch: Batch, transfer_dtype: str | None) -> tuple[Batch, Widths]:
    """The batch with the floats of its inputs in `transfer_dtype`, where that is narrower, and how to undo it.

    UsageError where values do not fit, with their range. Containers keep their kind; tensors that are not narrowed
    are not copied.
    """
    if transfer_dtype is None:
        return batch, ()
    walk = _Narrowing(dtypes.DTYPES[transfer_dtype])
    narrowed = walk.batch(batch)
    return narrowed, tuple(walk.widths) if any(walk.widths) else ()


def widen(batch: Batch, widths: Sequence[Width | None]) -> Batch:
    """The batch with its own dtypes again, on whichever device it lies; nothing is done where `widths` is empty.

    Pictures of bytes come back to the bit. ProtocolError where `widths` does not go with the tensors.
    """
    if not widths:
        return batch
    left = list(reversed(widths))
    widened = _mapped(batch, lambda tensor: _widened(tensor, left))
    if left:
        raise ProtocolError(f"a batch came with {len(widths)} widths and {len(widths) - len(left)} tensors")
    return widened


def check_widths(batch: Batch, widths: Sequence[Width | None]) -> None:
    """ProtocolError where `widen` could not do with these, which came with the batch."""
    if not widths:
        return
    tensors: list[Tensor] = []
    _mapped(batch, tensors.append)
    if len(widths) != len(tensors):
        raise ProtocolError(f"a batch came with {len(widths)} widths and {len(tensors)} tensors")
    for width in widths:
        if width is not None and width.dtype not in _WIDE:
            raise ProtocolError(
                f"a tensor of a batch is to become {width.dtype!r}, which is no floating dtype"
            )


class _Narrowing:
    """One walk over a batch: the widths of the tensors met so far."""

    def __init__(self, to: torch.dtype) -> None:
        self._to = to
        self.widths: list[Width | None] = []

    def batch(self, batch: Batch) -> Batch:
        if isinstance(batch, Mapping):
            return {
                name: self._kept(value) if name in TARGET_NAMES else self._narrowed(value)
                for name, value in batch.items()
            }
        if isinstance(batch, tuple | list) and len(batch) > 1:
            parts = [*(self._narrowed(part) for part in batch[:-1]), self._kept(batch[-1])]
            return _like(batch, parts)
        return self._narrowed(batch)

    def _narrowed(self, part: Any) -> Any:
        return _mapped(part, self._tensor)

    def _kept(self, part: Any) -> Any:
        return _mapped(part, self._as_it_is)

    def _as_it_is(self, tensor: Tensor) -> Tensor:
        self.widths.append(None)
        return tensor

    def _tensor(self, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or tensor.dtype.itemsize <= self._to.itemsize:
            return self._as_it_is(tensor)
        self._check_range(tensor)
        name = dtypes.NAMES[tensor.dtype]
        if self._to is not torch.uint8:
            self.widths.append(Width(name))
            return tensor.to(self._to)
        whole = tensor.to(torch.uint8)
        if bool((whole == tensor).all()):
            self.widths.append(Width(name))
            return whole
        self.widths.append(Width(name, _STEPS))
        return tensor.mul(_STEPS).round_().to(torch.uint8)

    def _check_range(self, tensor: Tensor) -> None:
        if tensor.numel() == 0:
            return
        low, high = (float(value) for value in torch.aminmax(tensor.detach()))
        if self._to is torch.uint8:
            if low >= 0.0 and high <= 1.0:
                return
            if not (low >= 0.0 and high <= 255.0 and bool((tensor == tensor.floor()).all())):
                raise UsageError(
                    f'transfer_dtype="uint8" takes values from 0 to 1, or whole numbers from 0 to 255, and this batch '
                    f"holds {low:g} to {high:g}: normalise in the model instead of the dataset, or send float16"
                )
        elif not max(abs(low), abs(high)) <= torch.finfo(self._to).max and self._overflows(tensor):
            low, high = (float(value) for value in torch.aminmax(tensor[torch.isfinite(tensor)]))
            raise UsageError(
                f"transfer_dtype reaches {torch.finfo(self._to).max:g}, and this batch holds {low:g} to {high:g}: "
                "send bfloat16, or scale the data"
            )

    def _overflows(self, tensor: Tensor) -> bool:
        """Whether a number would become infinite; what is infinite, or no number, stays what it is."""
        return bool((torch.isfinite(tensor) & ~torch.isfinite(tensor.to(self._to))).any())


def _widened(tensor: Tensor, left: list[Width | None]) -> Tensor:
    if not left:
        raise ProtocolError("a batch came with fewer widths than tensors")
    width = left.pop()
    if width is None:
        return tensor
    dtype = dtypes.DTYPES.get(width.dtype)
    if dtype is None or not dtype.is_floating_point:
        raise ProtocolError(f"a tensor of a batch is to become {width.dtype!r}, which is no floating dtype")
    wide = tensor.to(dtype)
    if width.divisor == 1:
        return wide
    # By a tensor: by a plain number CUDA would multiply with 1/255 instead, which ends in other bits.
    return wide.div_(torch.full((), width.divisor, dtype=dtype, device=wide.device))


def _mapped(value: Any, function: Any) -> Any:
    """The same nest with `function` of each tensor, in order."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {name: _mapped(item, function) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return _like(value, [_mapped(item, function) for item in value])
    return value


def _like(container: tuple[Any, ...] | list[Any], items: list[Any]) -> Any:
    if isinstance(container, tuple) and hasattr(container, "_fields"):
        return type(container)(*items)
    return type(container)(items)
