"""Memory for batches that are received, used again and again: fresh pages cost more than the copy into them.

A buffer is free once no tensor looks at it any more, however long somebody keeps a batch. So nobody has to give
one back, and nobody's kept batch is overwritten. Pinned where there is CUDA: then a copy to the device can run
beside the computation, and whoever starts one keeps the tensors until it has finished.
"""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from manyhands.tensors import memory

_SPARE: Final = 4
"""Free buffers that are kept; the largest ones."""
_SMALLEST_BYTES: Final = 64 << 10
"""Smaller batches come out of the allocator's own store at no cost."""


@dataclass
class _Buffer:
    root: memory.Bytes
    """Every array over the memory has this one as its base, so its references are the batch's."""


class Buffers:
    """Hands out memory for one batch at a time; from any thread."""

    def __init__(self, *, pinned: bool | None = None) -> None:
        self._is_pinned = torch.cuda.is_available() if pinned is None else pinned
        self._buffers: list[_Buffer] = []
        self._lock = threading.Lock()

    def take(self, num_bytes: int) -> Tensor:
        """Uninitialised uint8 ``(num_bytes,)``, aligned to 64 bytes; it is in use until nothing refers to it."""
        if num_bytes < _SMALLEST_BYTES:
            return memory.allocate(num_bytes)
        with self._lock:
            free = [buffer for buffer in self._buffers if _is_free(buffer)]
            fitting = [buffer for buffer in free if len(buffer.root) >= num_bytes]
            if fitting:
                chosen = min(fitting, key=lambda buffer: len(buffer.root))
            else:
                self._forget(free)
                chosen = _Buffer(self._new(num_bytes))
                self._buffers.append(chosen)
            return torch.from_numpy(chosen.root[:num_bytes])

    @property
    def num_bytes(self) -> int:
        """Memory that is held, in use or not."""
        with self._lock:
            return sum(len(buffer.root) for buffer in self._buffers)

    def _forget(self, free: list[_Buffer]) -> None:
        """Batches have grown, or more are kept than before: small and surplus free buffers go."""
        free.sort(key=lambda buffer: -len(buffer.root))
        for buffer in free[_SPARE - 1 :]:
            self._buffers.remove(buffer)

    def _new(self, num_bytes: int) -> memory.Bytes:
        size = memory.padded(num_bytes + num_bytes // 16)  # a ragged batch may be a little larger
        if not self._is_pinned:
            return memory.allocate(size).numpy()
        return torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy()


def _is_free(buffer: _Buffer) -> bool:
    # Two references are ours: the field, and getrefcount's own argument.
    return sys.getrefcount(buffer.root) <= 2
