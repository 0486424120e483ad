"""The layers that may be named: a closed table of torch.nn classes, and what their options may be.

A class arrives as text. Text never reaches ``getattr(torch.nn, …)``: it is looked up here or refused, and so is
each option, by the parameters of the class itself. Left out are classes that take modules or functions, that
look at values, or whose result's size depends on them.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import nn

from manyhands.errors import ProgramRefused
from manyhands.pipeline.recipes.format import Option, Setting, Sizes
from manyhands.pipeline.wrapped import wrapped_linear
from manyhands.programs.format import Dtype
from manyhands.tensors.dtypes import DTYPES

_CLASSES: Final[tuple[type[nn.Module], ...]] = (
    *(wrapped_linear, nn.Linear, nn.Bilinear, nn.Identity, nn.Embedding, nn.Flatten, nn.Unflatten),
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d, nn.LPPool1d, nn.LPPool2d),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.LocalResponseNorm),
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU),
    *(nn.Mish, nn.Sigmoid, nn.LogSigmoid, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.Hardshrink),
    *(nn.Tanh, nn.Tanhshrink, nn.Softplus, nn.Softsign, nn.Softshrink, nn.Threshold, nn.GLU),
    *(nn.Softmax, nn.Softmin, nn.LogSoftmax, nn.Softmax2d),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout),
    *(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d, nn.PixelShuffle, nn.PixelUnshuffle),
    *(nn.ChannelShuffle, nn.Fold, nn.Unfold, nn.CosineSimilarity),
    *(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d),
    *(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReplicationPad1d, nn.ReplicationPad2d),
    *(nn.RNN, nn.LSTM, nn.GRU, nn.MultiheadAttention, nn.TransformerEncoderLayer),
)

LAYERS: Final[Mapping[str, type[nn.Module]]] = MappingProxyType({cls.__name__: cls for cls in _CLASSES})
"""Every class a recipe may name, by its key."""

KEYS: Final[Mapping[type[nn.Module], str]] = MappingProxyType({cls: key for key, cls in LAYERS.items()})
"""The same table read the other way; a subclass is not in it, for its forward is another."""

_WITHHELD: Final = frozenset(
    {"self", "args", "kwargs", "device", "sparse", "inplace", "dependencies", "out_variables"}
)
"""Options that no recipe has: devices are the worker's, names of skips the boss's, sparse gradients nobody's.

Out of place the bits are those of in place, and a layer's input may be a skip, too.
"""
_WORDS: Final = frozenset(
    (
        *("zeros", "reflect", "replicate", "circular", "same", "valid", "none", "tanh", "relu", "gelu"),
        *("nearest", "nearest-exact", "linear", "bilinear", "bicubic", "trilinear", "area"),
    )
)
_MOST: Final = MappingProxyType({"num_layers": 256})
"""Options that a constructor loops over."""


def _options(cls: type[nn.Module]) -> Mapping[str, Any]:
    # The signatures of recurrent layers are open; their base class says what they take.
    open_signature = issubclass(cls, nn.RNNBase)
    signature = inspect.signature(nn.RNNBase.__init__ if open_signature else cls.__init__)
    withheld = _WITHHELD | {"mode"} if open_signature else _WITHHELD
    return MappingProxyType(
        {
            name: parameter.default
            for name, parameter in signature.parameters.items()
            if name not in withheld and not name.startswith("_")
        }
    )


OPTIONS: Final[Mapping[type[nn.Module], Mapping[str, Any]]] = MappingProxyType(
    {cls: _options(cls) for cls in _CLASSES} | {nn.RNN: {**_options(nn.RNN), "nonlinearity": "tanh"}}
)
"""The options that each class takes, in the order of its constructor, with their defaults."""


def setting_of(value: Any) -> Setting:
    """`value` as an option travels; TypeError where it cannot."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple) and all(
        item is None or isinstance(item, bool | int | float) for item in value
    ):
        return Sizes(tuple(value))
    if isinstance(value, torch.dtype):
        return Dtype(str(value).removeprefix("torch."))  # type: ignore[arg-type]
    raise TypeError(f"a {type(value).__name__}")


def layer_class(key: str) -> type[nn.Module]:
    """The class of a key; ProgramRefused where the table has none."""
    if (found := LAYERS.get(key)) is None:
        raise ProgramRefused(f"{key[:64]!r} is no layer of this machine's catalogue")
    return found


def arguments(cls: type[nn.Module], options: Sequence[Option]) -> dict[str, Any]:
    """`options` as the constructor of `cls` takes them; ProgramRefused for one it has no place for."""
    given: dict[str, Any] = {}
    for option in options:
        if option.name not in OPTIONS[cls] or option.name in given:
            raise ProgramRefused(
                f"{KEYS[cls]} takes no option {option.name!r}, or takes it once; it has "
                f"{', '.join(OPTIONS[cls]) or 'none'}"
            )
        if problem := _problem(option):
            raise ProgramRefused(f"option {option.name} of {KEYS[cls]} is {problem}")
        given[option.name] = _plain(option.value)
    return given


def _problem(option: Option) -> str | None:
    items = option.value.items if isinstance(option.value, Sizes) else (option.value,)
    for item in items:
        if isinstance(item, str) and item not in _WORDS:
            return f"the word {item!r}, which no layer takes"
        if isinstance(item, float) and not math.isfinite(item):
            return f"{item}, not a finite number"
        if isinstance(item, int) and item > _MOST.get(option.name, 2**31):
            return f"{item}; at most {_MOST.get(option.name, 2**31)} is allowed"
    return None


def _plain(value: Setting) -> Any:
    if isinstance(value, Sizes):
        return tuple(value.items)
    return DTYPES[value.name] if isinstance(value, Dtype) else value
