"""What autocast does to an operator's arguments, for tensors on the meta device, which it passes by.

A program captured under autocast holds the same nodes as one that was not; only where the model itself asked
for a dtype do they differ. So the dry run, too, must see bfloat16 where the machine will. The lists are those of
torch's CPU and CUDA autocast as far as they name operators of ours; a wrong entry costs a wrong estimate or a
refusal, never memory, since shapes do not depend on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

_LOWER: Final = frozenset(
    [
        "linear",
        "mm",
        "bmm",
        "matmul",
        "addmm",
        "addbmm",
        "baddbmm",
        "einsum",
        "conv1d",
        "conv2d",
        "conv3d",
        "convolution",
        "conv_transpose1d",
        "conv_transpose2d",
        "conv_transpose3d",
        "scaled_dot_product_attention",
        "lstm_cell",
        "gru_cell",
        "rnn_tanh_cell",
        "rnn_relu_cell",
        "lstm",
        "gru",
        "rnn_tanh",
        "rnn_relu",
        "prelu",
    ]
)
_PROMOTE: Final = frozenset(
    ["cat", "stack", "index_copy", "bilinear", "addcdiv", "addcmul", "atan2", "tensordot"]
)


def in_force(device_type: str) -> torch.dtype | None:
    """The dtype that autocast casts to on devices of this kind now; None where it is off, or there is none (meta)."""
    if not torch.amp.is_autocast_available(device_type) or not torch.is_autocast_enabled(device_type):
        return None
    return torch.get_autocast_dtype(device_type)


def target(operator: str, arguments: Mapping[str, Any], device_type: str) -> torch.dtype | None:
    """The dtype to which autocast would cast the floating arguments of `operator`; None where it would not."""
    if (dtype := in_force(device_type)) is None:
        return None
    name = operator.partition(".")[0]
    if name in _LOWER:
        return dtype
    return torch.float32 if name in _PROMOTE and len(_floating(arguments)) > 1 else None


def may_stand_for(dtype: torch.dtype, captured: torch.dtype, device_type: str) -> bool:
    """Whether a tensor may come in where one of dtype `captured` was: under autocast any floating one for another, as
    layers before it give narrower numbers then.
    """
    is_cast = dtype.is_floating_point and captured.is_floating_point
    return dtype == captured or (is_cast and in_force(device_type) is not None)


def cast(value: Any, dtype: torch.dtype) -> Any:
    """`value` with its floating tensors, itself or in a list, as `dtype`; float64 stays."""
    if isinstance(value, list):
        return [cast(item, dtype) for item in value]
    if isinstance(value, Tensor) and value.dtype.is_floating_point and value.dtype != torch.float64:
        return value.to(dtype)
    return value


def _floating(arguments: Mapping[str, Any]) -> set[torch.dtype]:
    values = [
        item for value in arguments.values() for item in (value if isinstance(value, list) else [value])
    ]
    return {value.dtype for value in values if isinstance(value, Tensor) and value.dtype.is_floating_point}
