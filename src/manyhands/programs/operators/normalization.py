"""Batch, layer, group, instance and root-mean-square normalisation.

Kernels read weights and statistics by raw address with the input's number of channels, so each must be a
contiguous vector of just that length.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from manyhands.programs.operators import infer, require
from manyhands.programs.operators.row import Arguments, Row, row


def _dtypes(own: Tensor, others: list[Tensor | None]) -> str | None:
    """The input is floating; weights and statistics are of its dtype, or all float32."""
    found = {tensor.dtype for tensor in others if tensor is not None}
    if require.is_integral(own.dtype) or len(found) > 1 or not found <= {own.dtype, torch.float32}:
        return f"an input of {own.dtype} with weights of {require.text_of(found)}"
    return None


def _channels(a: Arguments) -> str | None:
    """Input ``(N, C, …)``; weight, bias and both statistics are vectors of C, or absent."""
    own: Tensor = a["input"]
    vectors = [a["weight"], a["bias"], a["running_mean"], a["running_var"]]
    if own.dim() < 2:
        return f"input {tuple(own.shape)} has no channels"
    if not all(require.vector(vector, own.shape[1]) for vector in vectors):
        return f"weights or statistics are not vectors of {own.shape[1]}"
    if (a["running_mean"] is None) != (a["running_var"] is None):
        return "one of the two running statistics is missing"
    from_batch = a["training"] if "training" in a else a["use_input_stats"]
    if not from_batch and a["running_mean"] is None:
        return "there are neither running statistics nor the batch's"
    channels = own.shape[1] if "training" in a else own.shape[0] * own.shape[1]
    if from_batch and own.numel() == channels:
        # nn.BatchNorm refuses this in Python; the operator would divide by zero and go on.
        return f"expected more than 1 value per channel when training, got input size {list(own.shape)}"
    return _dtypes(own, vectors)


def _trailing(a: Arguments) -> str | None:
    """Input ``(…, *normalized_shape)``; weight and bias have that shape, or are absent."""
    own, shape = a["input"], list(a["normalized_shape"])
    weights = [a["weight"], a.get("bias")]
    if not shape or list(own.shape[own.dim() - len(shape) :]) != shape or own.dim() < len(shape):
        return f"input {tuple(own.shape)} does not end in {shape}"
    if any(weight is not None and list(weight.shape) != shape for weight in weights):
        return f"weights are not of shape {shape}"
    return _dtypes(own, weights)


def _groups(a: Arguments) -> str | None:
    """Input ``(N, C, …)`` with C a multiple of the groups; weight and bias are vectors of C, or absent."""
    own: Tensor = a["input"]
    groups, weights = a["num_groups"], [a["weight"], a["bias"]]
    if own.dim() < 2 or groups < 1 or own.shape[1] < 1 or own.shape[1] % groups:
        return f"input {tuple(own.shape)} in {groups} groups"
    if not all(require.vector(weight, own.shape[1]) for weight in weights):
        return f"weights are not vectors of {own.shape[1]}"
    return _dtypes(own, weights)


_STATISTICS: Final = ("running_mean", "running_var")

ROWS: Final[tuple[Row, ...]] = (
    row("batch_norm.default", _channels, infer=infer.same("input"), writes=_STATISTICS),
    row("instance_norm.default", _channels, infer=infer.same("input"), writes=_STATISTICS),
    row("layer_norm.default", _trailing, infer=infer.same("input")),
    row("rms_norm.default", _trailing, infer=infer.same("input")),
    row("group_norm.default", _groups, infer=infer.same("input")),
)
