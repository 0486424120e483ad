"""The closed table of element types that may travel, by name.

A dtype arrives as text. Text never reaches ``getattr(torch, …)``: it is looked up here or refused. This
module knows names and sizes only, nothing of frames, layouts or memory.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

import numpy as np
import torch

_TRAVELLING: Final = (
    torch.bool,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex32,
    torch.complex64,
    torch.complex128,
    torch.float8_e4m3fn,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
    torch.float4_e2m1fn_x2,
)

NAMES: Final = MappingProxyType({dtype: str(dtype).removeprefix("torch.") for dtype in _TRAVELLING})
"""Every dtype that may travel, to its name on the wire, e.g. ``torch.float32 -> "float32"``."""

DTYPES: Final = MappingProxyType({name: dtype for dtype, name in NAMES.items()})
"""The same table read the other way; a name that is not in it is refused."""

_IN_NUMPY: Final = (
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
)

NUMPY: Final = MappingProxyType({DTYPES[name]: np.dtype(name) for name in _IN_NUMPY})
"""The dtypes that numpy has too, so that a numpy array can travel as a tensor and come back as an array."""
