"""Whether a model's gradients are numbers: a loss that is one says nothing of them (the slope of a root at 0)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def gradients_of(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The gradients that there are, by the name of their parameter."""
    return {name: p.grad for name, p in parameters.items() if p.grad is not None}


def first_nonfinite(gradients: Mapping[str, Tensor]) -> str | None:
    """The first name whose gradient holds an infinity or no number; None where all are finite.

    Reads each gradient once, and asks the device once.
    """
    dense = {
        name: gradient._values() if gradient.is_sparse else gradient for name, gradient in gradients.items()
    }
    named = {name: values for name, values in dense.items() if values.numel()}
    if not named:
        return None
    largest = torch._foreach_norm(list(named.values()), math.inf)
    flags = torch.isfinite(torch.stack([value.float() for value in largest])).tolist()
    return next((name for name, is_finite in zip(named, flags, strict=True) if not is_finite), None)
