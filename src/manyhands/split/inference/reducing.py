"""From a batch's outputs to the columns that a user asked for, on the device, and to the host in one copy.

::

    output (B, C) ── softmax, top-k ──> columns, kept rows first ──> one uint8 body ══ 1 copy ══> arrays
                                                                     [count | column | column …]

Which rows are confident enough is known on the device only; sorting them to the front there, instead of asking how
many there are, saves the device from waiting for the host.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from manyhands.errors import UsageError
from manyhands.split.inference.wishes import Columns, Wishes
from manyhands.training.objective import logits_of

ALIGNMENT = 16
"""Bytes; every dtype may be viewed at such an offset."""


def reduce_output(output: Any, wishes: Wishes, indices: tuple[int, ...]) -> Columns:
    """The wished-for columns of one batch, on the host.

    ``output`` is what the model returned for the samples `indices`: scores ``(B, C)`` of two or more classes give
    ``predictions`` (int32), ``confidences`` (float32, softmax), ``top_k_indices`` (B, k) and ``top_k_probabilities``;
    one number a sample, ``(B,)`` or ``(B, 1)``, gives ``predictions`` as they are; anything else can be had as
    ``raw_outputs`` only. ``indices`` (int64) are the dataset's. UsageError where a wish does not fit the output.
    """
    scores = logits_of(output)
    if scores.ndim == 0 or scores.shape[0] != len(indices):
        raise UsageError(
            f"the model returns {tuple(scores.shape)} for a batch of {len(indices)} samples: the first dimension must "
            "be the samples"
        )
    columns, confidences = _columns(scores, wishes)
    if wishes.confidence_threshold > 0.0:
        if confidences is None:
            raise UsageError(
                f"confidence_threshold={wishes.confidence_threshold} needs scores of two or more classes, and the "
                f"model returns {tuple(scores.shape)}: leave it 0"
            )
        kept = confidences >= wishes.confidence_threshold
        order = torch.argsort(~kept, stable=True)
        columns = {name: column.index_select(0, order) for name, column in columns.items()}
        columns["rows"], count = order, kept.sum().reshape(1)
    else:
        count = None
    arrays = _to_host(columns if count is None else {"count": count, **columns})
    rows = np.asarray(indices, dtype=np.int64)
    if count is None:
        return {"indices": rows, **arrays}
    num_kept = int(arrays.pop("count")[0])
    rows = rows[arrays.pop("rows")[:num_kept]]
    return {"indices": rows, **{name: array[:num_kept] for name, array in arrays.items()}}


def _columns(scores: Tensor, wishes: Wishes) -> tuple[dict[str, Tensor], Tensor | None]:
    """The columns on the device, and the confidences for the filter; None where there are no classes."""
    raw = {"raw_outputs": scores.detach()} if wishes.return_raw_outputs else {}
    if scores.ndim == 2 and scores.shape[1] >= 2 and scores.is_floating_point():
        return _classes(scores, wishes, raw)
    if scores.ndim == 1 or (scores.ndim == 2 and scores.shape[1] == 1):
        if wishes.top_k > 1 or wishes.return_full_probabilities:
            raise UsageError(
                f"top_k and full probabilities need scores of two or more classes, and the model returns "
                f"{tuple(scores.shape)}, one number a sample"
            )
        return {"predictions": scores.reshape(-1), **raw}, None
    if not raw:
        raise UsageError(
            f"the model returns {tuple(scores.shape)} {scores.dtype}, which is no (samples, classes): ask for "
            "return_raw_outputs=True, or return class scores from the model"
        )
    return raw, None


def _classes(
    scores: Tensor, wishes: Wishes, raw: dict[str, Tensor]
) -> tuple[dict[str, Tensor], Tensor | None]:
    if wishes.top_k > scores.shape[1]:
        raise UsageError(f"top_k={wishes.top_k}, and the model has {scores.shape[1]} classes")
    probabilities = torch.softmax(scores.float(), dim=1)
    # The scores' order, not the probabilities': those of two unlike scores may round to the same number.
    classes = scores.topk(wishes.top_k, dim=1).indices
    likeliest = probabilities.gather(1, classes)
    confidences = likeliest[:, 0]
    columns = {
        "predictions": classes[:, 0].to(torch.int32),
        "confidences": confidences,
        "top_k_indices": classes.to(torch.int32),
        "top_k_probabilities": likeliest,
    }
    if wishes.return_full_probabilities:
        columns["probabilities"] = probabilities
    return {**columns, **raw}, confidences


def _to_host(columns: dict[str, Tensor]) -> Columns:
    """The columns as arrays of their own memory, in one copy from the device."""
    columns = {name: _portable(column).contiguous() for name, column in columns.items()}
    offsets, size = [], 0
    for column in columns.values():
        offsets.append(size)
        size += -(-column.nbytes // ALIGNMENT) * ALIGNMENT
    device = next(iter(columns.values())).device
    body = torch.empty(size, dtype=torch.uint8, device=device)
    for column, offset in zip(columns.values(), offsets, strict=True):
        body[offset : offset + column.nbytes].copy_(column.reshape(-1).view(torch.uint8))
    host = body.cpu().numpy()
    return {
        name: _view(host[offset : offset + column.nbytes], column)
        for (name, column), offset in zip(columns.items(), offsets, strict=True)
    }


def _portable(column: Tensor) -> Tensor:
    return column.float() if column.dtype in (torch.bfloat16, torch.float16) else column


def _view(data: np.ndarray[Any, Any], column: Tensor) -> np.ndarray[Any, Any]:
    dtype = torch.empty(0, dtype=column.dtype).numpy().dtype
    return data.view(dtype).reshape(tuple(column.shape))
