"""Random numbers of a layer: keyed by what they are for, so that no placement and no schedule changes them.

Every layer that may draw has torch's generators set from (run, step, micro-batch, layer) right before it runs, on
whichever stage and after whatever else ran there.
"""

from __future__ import annotations

from typing import Final

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from manyhands.pipeline.recipes.build import BuiltLayer
from manyhands.pipeline.wrapped import wrapped_linear
from manyhands.training.seeds import derive, seed_torch

_NEVER_DRAW: Final = (
    *(BuiltLayer, wrapped_linear, nn.ModuleList, nn.Sequential, nn.Identity, nn.Flatten, nn.Unflatten),
    *(nn.Linear, nn.Bilinear, nn.Embedding, _ConvNd, _NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm),
    *(nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.LeakyReLU, nn.ELU, nn.Softmax, nn.LogSoftmax),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Upsample, nn.PixelShuffle),
)
"""Layers that are known to draw nothing, of themselves: seeding takes 4 µs, a small layer 10."""


def may_draw(layer: nn.Module) -> bool:
    """Whether `layer` might take random numbers; True where that is not known."""
    return not all(isinstance(part, _NEVER_DRAW) for part in layer.modules())


def seed_layer(run_seed: int, step: int, micro_batch: int, layer: int) -> None:
    """Set torch's generators for one layer over one micro-batch."""
    seed_torch(derive(run_seed, "layer", step, micro_batch, layer))
