"""Shared memory that a worker puts a batch into and this process looks at: one slot, one batch at a time.

A slot's memory has no name and grows to the largest batch it was given. Tensors lie at multiples of 64 bytes, in the
order of a frame's entries; where each one is follows from the entries, which come beside it.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Sequence
from weakref import finalize

import numpy as np
from torch import Tensor

from manyhands.settings.sharing import shared_descriptor
from manyhands.tensors import dtypes
from manyhands.tensors.frame import Entry
from manyhands.tensors.memory import Bytes, allocate, contiguous_strides, densified, padded, tensor_over

_GROW_BYTES = 1 << 20


class Slot:
    """One piece of shared memory, as one of the two processes sees it."""

    def __init__(self, descriptor: int | None = None) -> None:
        self.descriptor = shared_descriptor(0) if descriptor is None else descriptor
        self._memory: mmap.mmap | None = None

    def put(self, tensors: Sequence[Tensor]) -> tuple[Entry, ...]:
        """Copy `tensors` in, dense and in order; what :meth:`views` needs to find them."""
        dense = [densified(tensor) for tensor in tensors]
        body = self._body(sum(padded(tensor.nbytes) for tensor in dense), grow=True)
        entries: list[Entry] = []
        start = 0
        for tensor in dense:
            shape, strides = tuple(tensor.shape), tensor.stride()
            is_plain = tensor.numel() == 0 or strides == contiguous_strides(shape)
            entries.append(Entry(dtypes.NAMES[tensor.dtype], shape, None if is_plain else strides))
            if tensor.numel():
                tensor_over(body, start, tensor.dtype, shape, None if is_plain else strides).copy_(tensor)
            start += padded(tensor.nbytes)
        return tuple(entries)

    def views(self, entries: Sequence[Entry], on_free: Callable[[], None]) -> list[Tensor]:
        """The tensors as they lie; `on_free` is called, on any thread, when the last of them is gone."""
        body = self._body(_num_bytes(entries))
        finalize(body, on_free).atexit = False
        return _over(body, entries)

    def copies(self, entries: Sequence[Entry]) -> list[Tensor]:
        """The tensors in memory of this process's own."""
        num_bytes = _num_bytes(entries)
        body: Bytes = allocate(num_bytes).numpy()
        body[:] = self._body(num_bytes)
        return _over(body, entries)

    def close(self) -> None:
        """Give the descriptor back; tensors that are still looked at keep the memory."""
        os.close(self.descriptor)
        self._memory = None

    def _body(self, num_bytes: int, *, grow: bool = False) -> Bytes:
        """The first bytes: an array of its own, which every tensor over it keeps alive."""
        if num_bytes == 0:
            return np.empty(0, np.uint8)
        if self._memory is None or len(self._memory) < num_bytes:
            if grow and os.fstat(self.descriptor).st_size < num_bytes:
                os.ftruncate(self.descriptor, -(-num_bytes // _GROW_BYTES) * _GROW_BYTES)
            self._memory = mmap.mmap(self.descriptor, 0)
        return np.frombuffer(self._memory, np.uint8, num_bytes)


def _num_bytes(entries: Sequence[Entry]) -> int:
    return sum(padded(entry.num_bytes) for entry in entries)


def _over(body: Bytes, entries: Sequence[Entry]) -> list[Tensor]:
    tensors: list[Tensor] = []
    start = 0
    for entry in entries:
        tensors.append(tensor_over(body, start, dtypes.DTYPES[entry.dtype], entry.shape, entry.strides))
        start += padded(entry.num_bytes)
    return tensors
