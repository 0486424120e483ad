"""One entry of a layer list, taken apart and checked for its form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from manyhands.errors import UsageError

_CONSUMED: Final = ("in_variables", "dependencies")
_PRODUCED: Final = "out_variables"


@dataclass(frozen=True)
class Shape:
    """A declared input: all sizes, the batch's first, and a dtype where one is given."""

    sizes: tuple[int, ...]
    dtype: torch.dtype | None = None

    def __str__(self) -> str:
        return f"{self.dtype or ''} {self.sizes}".strip().removeprefix("torch.")


@dataclass(frozen=True)
class Entry:
    """A layer as it was written. `consumed` are the names it takes after the main input, in order."""

    index: int
    cls: type[nn.Module]
    kwargs: Mapping[str, Any]
    """All of them, the names included."""
    shapes: tuple[Shape, ...]
    consumed: tuple[str, ...]
    produced: tuple[str, ...]

    @property
    def options(self) -> dict[str, Any]:
        """What configures the layer itself."""
        return {name: value for name, value in self.kwargs.items() if name not in (*_CONSUMED, _PRODUCED)}

    @property
    def writes(self) -> bool:
        """Whether it would change its input in place."""
        return bool(self.kwargs.get("inplace", False))

    def __str__(self) -> str:
        return f"layer {self.index} ({self.cls.__name__})"

    @staticmethod
    def of(index: int, given: Any) -> Entry:
        """UsageError where `given` is not (class, kwargs, shapes)."""
        if not isinstance(given, list | tuple) or len(given) != 3:
            raise UsageError(f"layer {index} is {given!r:.80}; a layer is (class, kwargs, shape)")
        cls, kwargs, shapes = given
        if not (isinstance(cls, type) and issubclass(cls, nn.Module)) or not isinstance(kwargs, Mapping):
            raise UsageError(
                f"layer {index} is ({cls!r:.60}, {kwargs!r:.60}, ...); a layer is a class of nn.Module and a dict of "
                "its arguments"
            )
        consumed = [name for key in _CONSUMED for name in _names(index, key, kwargs)]
        read = tuple(_shape(index, one) for one in (shapes if _is_several(shapes) else [shapes]))
        if len(read) > 1 + len(consumed):
            raise UsageError(
                f"layer {index} ({cls.__name__}) has {len(read)} shapes and takes {1 + len(consumed)} inputs: the main "
                f"one and {consumed or 'no names'}"
            )
        return Entry(index, cls, dict(kwargs), read, tuple(consumed), tuple(_names(index, _PRODUCED, kwargs)))


def _names(index: int, key: str, kwargs: Mapping[str, Any]) -> Sequence[str]:
    names = kwargs.get(key) or ()
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) and name for name in names):
        raise UsageError(f"{key} of layer {index} is {names!r:.80}; it must be a list of names")
    if len(set(names)) != len(names) and key == _PRODUCED:
        raise UsageError(f"{key} of layer {index} names one twice: {list(names)}")
    return names


def _is_several(shapes: Any) -> bool:
    """Whether it is a list of shapes: not a list of sizes, nor (shape, dtype)."""
    is_nested = isinstance(shapes, list | tuple) and len(shapes) > 0 and isinstance(shapes[0], list | tuple)
    return is_nested and not (len(shapes) == 2 and isinstance(shapes[1], torch.dtype))


def _shape(index: int, given: Any) -> Shape:
    dtype = None
    if isinstance(given, list | tuple) and len(given) == 2 and isinstance(given[1], torch.dtype):
        given, dtype = given
    sizes = tuple(given) if isinstance(given, list | tuple | torch.Size) else ()
    if not sizes or not all(isinstance(size, int) and not isinstance(size, bool) for size in sizes):
        raise UsageError(
            f"the shape of layer {index} is {given!r:.80}; a shape is a tuple of sizes, the batch's first"
        )
    if any(size < 0 for size in sizes[1:]):
        raise UsageError(
            f"the shape of layer {index} is {sizes}; only the first size, the batch's, may be open"
        )
    return Shape(tuple(sizes), dtype)
