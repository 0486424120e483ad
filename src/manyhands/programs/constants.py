"""The small tensors that a graph carries with it: raw bytes at multiples of 64, and tensors over a copy of them.

Knows nothing of graphs. The rows and their sizes were checked by the parser.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, cast

import numpy as np
import torch
from torch import Tensor

from manyhands.errors import ProgramRefused
from manyhands.programs.format import MAX_CONSTANT_BYTES, ConstantRow, DtypeName, Program
from manyhands.tensors import Layout, TensorSpec, bytes_of, dtypes


def pack(tensors: Sequence[Tensor]) -> tuple[tuple[ConstantRow, ...], bytes]:
    """The rows and raw bytes of `tensors`; ProgramRefused where they are more than 64 MiB together."""
    rows = tuple(
        ConstantRow(cast(DtypeName, dtypes.NAMES[tensor.dtype]), tuple(tensor.shape)) for tensor in tensors
    )
    layout = _layout(rows)
    if layout.num_bytes > MAX_CONSTANT_BYTES:
        raise ProgramRefused(
            f"the model's constants take {layout.num_bytes} bytes, at most {MAX_CONSTANT_BYTES} may travel with a "
            "program: register the large ones as buffers"
        )
    body = layout.allocate()
    for view, tensor in zip(layout.views(body), tensors, strict=True):
        view.copy_(tensor)
    return rows, bytes(bytes_of(body))


def tensors(program: Program) -> list[Tensor]:
    """The program's constants on the CPU, each aligned; ProgramRefused where a bool is neither 0 nor 1."""
    layout = _layout(program.constants)
    body = layout.allocate()
    body.numpy()[:] = np.frombuffer(program.data, np.uint8)
    views = layout.views(body)
    for number, view in enumerate(views):
        # Kernels compute with a bool's byte: as an index it would reach as far as 255.
        if view.dtype == torch.bool and view.numel() and int(view.view(torch.uint8).max()) > 1:
            raise ProgramRefused(f"constant {number} is bool and holds a byte above 1")
    return views


def _layout(rows: Sequence[ConstantRow]) -> Layout:
    return Layout(
        tuple(
            TensorSpec(f"{_PREFIX}{at}", dtypes.DTYPES[row.dtype], tuple(row.shape))
            for at, row in enumerate(rows)
        )
    )


_PREFIX: Final = "constant."
