"""A dataset to try things with: made, not read, and learnable."""

from __future__ import annotations

import torch

from manyhands.errors import UsageError
from manyhands.split.data.columns import Columns

_SPREAD = 4.0
"""How far the centres of two classes are apart, in standard deviations of a class, whatever the dimension."""


def create_simple_dataset(
    size: int = 10000, input_dim: int = 100, num_classes: int = 10, seed: int = 0
) -> Columns:
    """Gaussian clouds, one a class: samples x float32 ``(input_dim,)``, y int64 in ``[0, num_classes)``.

    Classes take turns, so each has ``size / num_classes`` samples, rounded up or down. UsageError where a size is
    below 1.
    """
    for name, value in (("size", size), ("input_dim", input_dim), ("num_classes", num_classes)):
        if value < 1:
            raise UsageError(f"{name} is {value}: give 1 or more")
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(num_classes, input_dim, generator=generator)
    centres = directions * (_SPREAD / (2.0 * input_dim) ** 0.5)
    y = torch.arange(size) % num_classes
    x = centres[y] + torch.randn(size, input_dim, generator=generator)
    return Columns([x, y])
