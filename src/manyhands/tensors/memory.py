"""Bytes under tensors: aligned memory, and tensors seen as bytes and back without copying.

A kernel may pick another order of additions for another alignment, so every tensor that leaves this
package begins at a multiple of 64 bytes, as torch's own do. CPU memory only; knows nothing of schemas.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

ALIGNMENT: Final = 64
"""Bytes; a cache line, an AVX-512 register, and what torch's CPU allocator gives."""

# What a memoryview can cast: numpy's native numbers.
_CASTABLE: Final = frozenset(
    {torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool}
)

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_MAX: Final = -4
"""Of glibc's mallopt(3)."""

Strides = tuple[int, ...]
Bytes = npt.NDArray[np.uint8]


def padded(num_bytes: int) -> int:
    """`num_bytes` rounded up to a multiple of 64."""
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


def allocate(num_bytes: int) -> Tensor:
    """Uninitialised CPU memory: uint8 ``(num_bytes,)``, its first byte at a multiple of 64."""
    memory = torch.empty(num_bytes, dtype=torch.uint8, device="cpu")
    if memory.data_ptr() % ALIGNMENT == 0:
        return memory
    # An allocator put under torch (a debugging or a pinning one) may align less.
    memory = torch.empty(num_bytes + ALIGNMENT, dtype=torch.uint8, device="cpu")
    start = -memory.data_ptr() % ALIGNMENT
    return memory[start : start + num_bytes]


@functools.cache
def keep_freed_memory() -> None:
    """Once a process: let this process use freed memory again for what comes next, where the C library can be told to.

    glibc gives large blocks back to the system, which hands them out anew page by page: to stack a batch of 38 MB
    took 20 ms instead of 6, and a pool's step that moved 160 MB met 13,000 page faults or more. What the process
    holds is then the most it ever needed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def contiguous_strides(shape: Sequence[int]) -> Strides:
    """What torch gives a new tensor of `shape`, in elements."""
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether elements fill one run of memory, each its own place: a permutation of contiguous.

    The stride of a dimension of size 1 says nothing about that, so it is not looked at. Nothing is dense
    that has a stride of 0 or below in a longer dimension. Not for tensors without elements.
    """
    step = 1
    for stride, size in sorted(
        (stride, size) for stride, size in zip(strides, shape, strict=True) if size > 1
    ):
        if stride != step:
            return False
        step *= size
    return True


def densified(tensor: Tensor) -> Tensor:
    """`tensor` as a plain dense CPU tensor without a graph: itself where it is one, else one copy.

    Memory order is kept (channels_last stays so); a lazy conjugate or negative is written out.
    """
    if type(tensor) is Tensor and _is_plain(tensor):
        return tensor
    plain = tensor.detach().as_subclass(Tensor).cpu().resolve_conj().resolve_neg()
    if plain.numel() == 0 or is_dense(plain.shape, plain.stride()):
        return plain
    copy = plain.clone(memory_format=torch.preserve_format)
    return copy if is_dense(copy.shape, copy.stride()) else copy.contiguous()


def _is_plain(tensor: Tensor) -> bool:
    """Whether nothing is to be done: the most common tensors, told apart in a microsecond."""
    return (
        tensor.is_cpu
        and not tensor.requires_grad
        and tensor.is_contiguous()
        and not tensor.is_conj()
        and not tensor.is_neg()
        and tensor.layout is torch.strided
    )


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a dense CPU tensor in memory order, not copied; they live as long as the view does.

    `tensor` must come from :func:`densified`, or be contiguous and without a graph.
    """
    if tensor.numel() == 0:
        return memoryview(b"")
    if tensor.dtype in _CASTABLE and tensor.is_contiguous():
        array: Any = tensor.numpy()
        return memoryview(array).cast("B")  # the same in a quarter of the time
    flat = tensor.as_strided((tensor.numel(),), (1,))
    raw: Bytes = flat.view(torch.uint8).numpy()
    return raw.data


def tensor_over(
    memory: Bytes, offset: int, dtype: torch.dtype, shape: Sequence[int], strides: Strides | None = None
) -> Tensor:
    """A tensor that is a writable part of `memory`, beginning at byte `offset`; nothing is copied.

    `memory` is a writable uint8 array, `offset` a multiple of 64 from an aligned start; `strides` (in
    elements, dense) default to contiguous. The caller has checked that the part lies inside `memory`.
    """
    num_bytes = dtype.itemsize * num_elements(shape)
    if num_bytes == 0:
        return torch.empty(tuple(shape), dtype=dtype, device="cpu")
    # Each tensor stands on a storage of its own. Slices of one body would share one version counter, and
    # writing to the labels would then void what autograd saved of the inputs.
    flat = torch.from_numpy(memory[offset : offset + num_bytes]).view(dtype)
    return flat.view(tuple(shape)) if strides is None else flat.as_strided(tuple(shape), strides)


def is_aligned(memory: npt.NDArray[Any]) -> bool:
    """Whether `memory` begins at a multiple of 64 bytes; memory of no bytes does."""
    return memory.size == 0 or int(memory.__array_interface__["data"][0]) % ALIGNMENT == 0


def num_elements(shape: Sequence[int]) -> int:
    """How many elements a tensor of `shape` has, as a Python integer that cannot overflow."""
    product = 1
    for size in shape:
        product *= size
    return product
