"""What a loop of the user's own is given and gives: a batch by the item's names, gradients in their order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from manyhands.errors import UsageError


def by_name(batch: Any) -> dict[str, Any]:
    """The keys of a custom loop's batch: the item's own, or inputs and targets."""
    if isinstance(batch, Mapping):
        return dict(batch)
    if isinstance(batch, Tensor):
        return {"inputs": batch}
    *inputs, targets = batch
    return {"inputs": inputs[0] if len(inputs) == 1 else tuple(inputs), "targets": targets}


def in_order(
    gradients: Sequence[Tensor | None] | Mapping[str, Tensor | None], parameters: Mapping[str, nn.Parameter]
) -> list[Tensor | None]:
    """Gradients of the trainable parameters, in their order; UsageError names what does not fit."""
    if isinstance(gradients, Mapping):
        unknown = sorted(set(gradients) - set(parameters))
        if unknown:
            raise UsageError(f"gradients name {unknown[0]!r}, which is no parameter of the model")
        rows = [(name, p, gradients.get(name)) for name, p in parameters.items() if p.requires_grad]
    else:
        trainable = [(name, p) for name, p in parameters.items() if p.requires_grad]
        expected = trainable if len(gradients) == len(trainable) else list(parameters.items())
        if len(gradients) != len(expected):
            raise UsageError(
                f"{len(gradients)} gradients were given for {len(expected)} parameters, in parameters() order"
            )
        rows = [(name, p, g) for (name, p), g in zip(expected, gradients, strict=True) if p.requires_grad]
    for name, parameter, gradient in rows:
        if gradient is not None and not isinstance(gradient, Tensor):
            raise UsageError(f"the gradient of {name} is a {type(gradient).__name__}, not a tensor or None")
        if gradient is not None and gradient.layout is not torch.strided:
            raise UsageError(
                f"the gradient of {name} is sparse, which is not summed exactly: give a dense one"
            )
        if gradient is not None and gradient.shape != parameter.shape:
            raise UsageError(
                f"the gradient of {name} is {tuple(gradient.shape)}, the parameter {tuple(parameter.shape)}"
            )
        if gradient is not None and gradient.dtype != parameter.dtype:  # a cast would change bits in silence
            ours, theirs = (str(dtype).removeprefix("torch.") for dtype in (parameter.dtype, gradient.dtype))
            raise UsageError(f"the gradient of {name} is {theirs}, the parameter {ours}")
    return [gradient for _, _, gradient in rows]
