"""A live torch layer written down, so that it can be built again elsewhere, and the proof that it can.

torch's layers keep what they were built with as attributes of the same names; where they don't, the value is read
from what it made. What comes out is built once on the meta device and must look as the original does: the same
text, the same tensors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import nn

from manyhands.errors import ManyhandsError, UsageError
from manyhands.pipeline.recipes import catalogue
from manyhands.pipeline.recipes.build import build
from manyhands.pipeline.recipes.format import Option, Recipe, TorchPart

_Read = Callable[[Any], Any]


def _dtype(module: nn.Module) -> torch.dtype | None:
    return next((one.dtype for one in module.parameters()), None)


def _activation(layer: Any) -> str:
    return "gelu" if layer.activation is torch.nn.functional.gelu else "relu"


_READ: Final[Mapping[tuple[type[nn.Module] | None, str], _Read]] = MappingProxyType(
    {
        (None, "dtype"): _dtype,
        (nn.MultiheadAttention, "bias"): lambda module: module.in_proj_bias is not None,
        (nn.MultiheadAttention, "add_bias_kv"): lambda module: module.bias_k is not None,
        (nn.PReLU, "init"): lambda module: 0.25,
        (nn.TransformerEncoderLayer, "d_model"): lambda layer: layer.self_attn.embed_dim,
        (nn.TransformerEncoderLayer, "nhead"): lambda layer: layer.self_attn.num_heads,
        (nn.TransformerEncoderLayer, "dim_feedforward"): lambda layer: layer.linear1.out_features,
        (nn.TransformerEncoderLayer, "dropout"): lambda layer: layer.dropout.p,
        (nn.TransformerEncoderLayer, "activation"): _activation,
        (nn.TransformerEncoderLayer, "layer_norm_eps"): lambda layer: layer.norm1.eps,
        (nn.TransformerEncoderLayer, "batch_first"): lambda layer: layer.self_attn.batch_first,
        (nn.TransformerEncoderLayer, "bias"): lambda layer: layer.linear1.bias is not None,
    }
)
"""Options that no attribute holds, by class (None: any) and name."""


def describe(module: nn.Module, path: str) -> TorchPart:
    """`module`, a layer of the catalogue, as a part whose parameters stand under `path`.

    UsageError where it is no longer what its class builds (a hook, a changed attribute, another dtype a tensor).
    """
    cls = type(module)
    if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
        raise UsageError(
            f"{path} ({cls.__name__}) has a hook or a forward of its own, which no worker would run: make it a "
            "module of the model"
        )
    options = tuple(
        Option(name, catalogue.setting_of(value))
        for name, default in catalogue.OPTIONS[cls].items()
        if (value := _option(module, name, default)) != default
    )
    frozen = tuple(name for name, one in module.named_parameters() if not one.requires_grad)
    part = TorchPart(catalogue.KEYS[cls], path, options, frozen=frozen)
    _check(module, part)
    return part


def _option(module: nn.Module, name: str, default: Any) -> Any:
    for key in ((type(module), name), (None, name)):
        if key in _READ:
            return _READ[key](module)
    value = getattr(module, name, default)
    return value is not None if name == "bias" and not isinstance(value, bool) else value


def _check(module: nn.Module, part: TorchPart) -> None:
    try:
        with torch.device("meta"):
            built = build(Recipe(1, (part,), (1,))).parts[0]
    except ManyhandsError as error:
        raise UsageError(f"{part.path} ({part.kind}) cannot be built on a worker: {error}") from None
    if _text(built) != _text(module) or _tensors(built) != _tensors(module):
        raise UsageError(
            f"{part.path} ({part.kind}) is not what its class builds: {_text(module)} would become {_text(built)}. "
            "Something was changed after it was made; build it with those options instead"
        )


def _text(module: nn.Module) -> str:
    return re.sub(r"(, )?inplace=\w+", "", repr(module))


def _tensors(module: nn.Module) -> list[tuple[str, torch.dtype, torch.Size]]:
    named = [*module.named_parameters(), *module.named_buffers()]
    return [(name, tensor.dtype, tensor.shape) for name, tensor in named]
