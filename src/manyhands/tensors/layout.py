"""Tensors whose names, dtypes and shapes both sides know once a run: one body, no schema in it.

Weights and gradients travel thousands of times and never change shape, so their schema is agreed at the
start and a body is nothing but their elements, each tensor contiguous at a multiple of 64 bytes::

    0        64       128               num_bytes
    | bias   | weight ······ | padding  |

Offsets follow from the specs alone; none is ever received. Knows nothing of streams or nesting.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Final

import msgspec
import torch
from msgspec import Meta
from torch import Tensor

from manyhands.errors import ProtocolError, UsageError
from manyhands.tensors import dtypes, memory

MAX_TENSORS: Final = 100_000
MAX_NAME_CHARACTERS: Final = 512
MAX_DIMS: Final = 64
MAX_BYTES: Final = 1 << 40
"""1 TiB: above it sizes are taken for lies whatever the caller allows."""


class WireSpec(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One tensor's name, dtype and shape as they travel."""

    name: Annotated[str, Meta(max_length=MAX_NAME_CHARACTERS)]
    dtype: Annotated[str, Meta(max_length=32)]
    shape: Annotated[tuple[Annotated[int, Meta(ge=0, le=MAX_BYTES)], ...], Meta(max_length=MAX_DIMS)]


WireSpecs = Annotated[list[WireSpec], Meta(max_length=MAX_TENSORS)]
"""What a message holds of a layout, for a field of a message or a decoder of its own."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """The name, dtype and shape of one tensor; `num_bytes` is its size without padding."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of its elements."""
        return memory.num_elements(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{dtypes.NAMES.get(self.dtype, self.dtype)} {self.shape}"


@dataclass(frozen=True)
class Layout:
    """Where each of an ordered set of tensors lies in one body.

    UsageError where a name comes twice or is too long, a dtype cannot travel, or there are too many.
    """

    specs: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        if problem := _problem(self.specs):
            raise UsageError(problem)

    @classmethod
    def of(cls, items: Iterable[tuple[str, Tensor]]) -> Layout:
        """The layout of named tensors, e.g. ``model.named_parameters()``; only their shapes are read."""
        return cls(tuple(TensorSpec(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in items))

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """The byte in the body where each tensor begins; multiples of 64."""
        return self._ends_and_offsets[1]

    @cached_property
    def num_bytes(self) -> int:
        """Bytes of the whole body, padded to a multiple of 64."""
        return self._ends_and_offsets[0]

    @cached_property
    def _ends_and_offsets(self) -> tuple[int, tuple[int, ...]]:
        offsets: list[int] = []
        end = 0
        for spec in self.specs:
            offsets.append(end)
            end += memory.padded(spec.num_bytes)
        return end, tuple(offsets)

    def allocate(self) -> Tensor:
        """A body: uint8 ``(num_bytes,)`` on the CPU, aligned to 64 bytes, padding zero, the rest not set."""
        body = memory.allocate(self.num_bytes)
        array = body.numpy()
        for spec, offset in zip(self.specs, self.offsets, strict=True):
            # Old memory of this process must not leave it between two tensors.
            array[offset + spec.num_bytes : offset + memory.padded(spec.num_bytes)] = 0
        return body

    def views(self, body: Tensor) -> list[Tensor]:
        """The tensors of `body`, in order: contiguous, writable, sharing its memory, not copied.

        `body` is uint8 ``(num_bytes,)`` on the CPU, aligned to 64 bytes; UsageError where it is not.
        """
        if (
            body.dtype != torch.uint8
            or body.dim() != 1
            or body.device.type != "cpu"
            or not body.is_contiguous()
        ):
            raise UsageError(
                f"a body is a contiguous 1-d uint8 tensor on the CPU, not {body.dtype} {body.shape}"
            )
        if body.numel() != self.num_bytes:
            raise UsageError(f"this layout takes a body of {self.num_bytes} bytes, and got {body.numel()}")
        array = body.numpy()
        if not memory.is_aligned(array):
            raise UsageError("a body must begin at a multiple of 64 bytes; make it with Layout.allocate()")
        places = zip(self.specs, self.offsets, strict=True)
        return [memory.tensor_over(array, offset, spec.dtype, spec.shape) for spec, offset in places]

    def to_wire(self) -> list[WireSpec]:
        """The specs as plain messages."""
        return [WireSpec(spec.name, dtypes.NAMES[spec.dtype], spec.shape) for spec in self.specs]

    @classmethod
    def from_wire(cls, wire: Sequence[WireSpec], *, max_bytes: int) -> Layout:
        """The layout a peer announced; ProtocolError where it cannot be, or is over `max_bytes` in all."""
        specs = []
        total = 0
        for spec in wire:
            if spec.dtype not in dtypes.DTYPES:
                raise ProtocolError(
                    f"tensor {spec.name!r} is announced as {spec.dtype!r}, which is no known dtype"
                )
            received = TensorSpec(spec.name, dtypes.DTYPES[spec.dtype], tuple(spec.shape))
            specs.append(received)
            total += memory.padded(received.num_bytes)
        if total > max_bytes:
            raise ProtocolError(
                f"a layout of {len(specs)} tensors needs {total} bytes; at most {max_bytes} are allowed"
            )
        if problem := _problem(specs):
            raise ProtocolError(problem)
        return cls(tuple(specs))

    def first_difference(self, other: Layout) -> str | None:
        """A sentence that names the first tensor in which `other` ("there") differs; None where none does."""
        for at, (here, there) in enumerate(zip(self.specs, other.specs, strict=False)):
            if here.name != there.name:
                return f"tensor {at} is {here.name!r} here and {there.name!r} there"
            if here != there:
                return f"{here.name} is {here} here and {there} there"
        if len(self.specs) == len(other.specs):
            return None
        longer, side = (self, "here") if len(self.specs) > len(other.specs) else (other, "there")
        extra = longer.specs[min(len(self.specs), len(other.specs))].name
        return (
            f"there are {len(self.specs)} tensors here and {len(other.specs)} there; {extra} is only {side}"
        )

    def digest(self) -> str:
        """sha256 of names, dtypes and shapes, in hex: equal where :meth:`first_difference` finds none."""
        return hashlib.sha256(msgspec.msgpack.encode(self.to_wire())).hexdigest()


def _problem(specs: Sequence[TensorSpec]) -> str | None:
    if len(specs) > MAX_TENSORS:
        return f"a layout has {len(specs)} tensors; at most {MAX_TENSORS} may travel"
    seen: set[str] = set()
    for spec in specs:
        if len(spec.name) > MAX_NAME_CHARACTERS:
            return (
                f"a tensor's name has {len(spec.name)} characters; at most {MAX_NAME_CHARACTERS} may travel"
            )
        if spec.name in seen:
            return f"a layout names {spec.name!r} twice"
        if spec.dtype not in dtypes.NAMES:
            return f"{spec.name} is {spec.dtype}, which cannot travel; cast or dequantize it"
        if problem := shape_problem(spec.shape):
            return f"{spec.name}: {problem}"
        seen.add(spec.name)
    return None


def shape_problem(shape: Sequence[int]) -> str | None:
    """Why no tensor may have this shape, as a sentence; None where one may.

    Sizes are multiplied as Python integers, empty dimensions counted as 1, so that no product that torch
    keeps in 64 bits can overflow.
    """
    if len(shape) > MAX_DIMS:
        return f"{len(shape)} dimensions; at most {MAX_DIMS} may travel"
    if any(size < 0 for size in shape):
        return f"a negative size in shape {tuple(shape)}"
    if memory.num_elements([max(size, 1) for size in shape]) > MAX_BYTES:
        return f"shape {tuple(shape)} spans more than {MAX_BYTES} elements"
    return None
