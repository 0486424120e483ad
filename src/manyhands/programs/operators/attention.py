"""Scaled dot-product attention.

The fused kernel walks the keys' length through the values and the mask by address, and reads beyond them
where they are shorter; so every length is compared here.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from manyhands.programs.operators import infer, require
from manyhands.programs.operators.row import Arguments, Row, row


def _attention(a: Arguments) -> str | None:
    """Query ``(…, H, L, E)``, key ``(…, H', S, E)``, value ``(…, H', S, V)``; H' = H, or divides it for GQA."""
    query, key, value = a["query"], a["key"], a["value"]
    if not 2 <= query.dim() == key.dim() == value.dim() <= 5:
        return f"{query.dim()}, {key.dim()} and {value.dim()} dimensions"
    if key.shape[-2] != value.shape[-2] or query.shape[-1] != key.shape[-1]:
        return f"shapes disagree: {_shapes(query, key, value)}"
    if key.shape[:-2] != value.shape[:-2] or not _heads_fit(query, key, a["enable_gqa"]):
        return f"batches or heads disagree: {_shapes(query, key, value)}"
    if min(*query.shape, *key.shape, *value.shape) < 1:
        return f"an empty dimension: {_shapes(query, key, value)}"
    if not 0.0 <= a["dropout_p"] < 1.0:
        return f"dropout_p is {a['dropout_p']}"
    return require.floating("query", "key", "value")(a) or _mask(a)


def _heads_fit(query: Tensor, key: Tensor, grouped: bool) -> bool:
    if not grouped:
        return query.shape[:-2] == key.shape[:-2]
    if query.dim() < 3 or query.shape[:-3] != key.shape[:-3]:
        return False
    return key.shape[-3] >= 1 and query.shape[-3] % key.shape[-3] == 0


def _mask(a: Arguments) -> str | None:
    """A mask is bool or floating, and stretches to ``(…, H, L, S)``."""
    mask, query = a["attn_mask"], a["query"]
    if mask is None:
        return None
    if a["is_causal"]:
        return "a mask and is_causal exclude each other"
    if mask.dtype != torch.bool and not mask.dtype.is_floating_point:
        return f"a mask of {mask.dtype}"
    scores = [*query.shape[:-1], a["key"].shape[-2]]
    if not 2 <= mask.dim() <= len(scores):
        return f"a mask of {mask.dim()} dimensions for scores of {len(scores)}"
    fits = all(size in (1, wanted) for size, wanted in zip(mask.shape, scores[-mask.dim() :], strict=True))
    return None if fits else f"a mask of {tuple(mask.shape)} does not stretch to {tuple(scores)}"


def _shapes(*tensors: Tensor) -> str:
    return ", ".join(str(tuple(tensor.shape)) for tensor in tensors)


def _num_scores(a: Arguments) -> int:
    query: Tensor = a["query"]
    return query.numel() // query.shape[-1] * int(a["key"].shape[-2])


def _flops(a: Arguments, _results: list[Tensor]) -> int:
    return 2 * _num_scores(a) * int(a["query"].shape[-1] + a["value"].shape[-1])


def _workspace(a: Arguments) -> int:
    """The scores before and after softmax, which a kernel that does not fuse keeps for backward."""
    return 2 * _num_scores(a) * int(a["query"].element_size())


def _infer(a: Arguments) -> Tensor:
    """``(…, H, L, V)``."""
    query: Tensor = a["query"]
    return infer.blank([*query.shape[:-1], a["value"].shape[-1]], query.dtype)


ROWS: Final[tuple[Row, ...]] = (
    row("scaled_dot_product_attention.default", _attention, flops=_flops, workspace=_workspace, infer=_infer),
)
