"""FSDP2 for models that one device cannot hold: parameters, gradients and optimizer state in parts, one a rank.

Whole states are put together to be saved and cut again when loaded, so that a checkpoint is the same file
whatever the strategy and the world size were.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.optim import Optimizer

from manyhands.errors import UsageError

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def shard(module: nn.Module, device: torch.device, world_size: int) -> nn.Module:
    """The same module, its parameters cut over all ranks: each member of a ModuleList or Sequential by itself."""
    mesh = init_device_mesh(device.type, (world_size,))
    for container in module.modules():
        if isinstance(container, nn.ModuleList | nn.Sequential):
            for block in container:
                if any(True for _ in block.parameters()):
                    fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)
    return module


def follow(optimizer: Optimizer, before: dict[int, str], module: nn.Module) -> None:
    """Point `optimizer` at the parameters that have taken the place of others; `before` is name by old id."""
    now = dict(module.named_parameters())
    for group in optimizer.param_groups:
        group["params"] = [now[before[id(p)]] if id(p) in before else p for p in group["params"]]
    if optimizer.state:
        raise UsageError("the optimizer has stepped already: prepare it before the first step")


def whole_model(module: nn.Module) -> dict[str, Any]:
    """By original names, on rank 0's CPU (empty elsewhere). All ranks must call it."""
    return get_model_state_dict(module, options=_WHOLE)


def whole_optimizer(module: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """By original names, on rank 0's CPU (empty elsewhere). All ranks must call it."""
    return dict(get_optimizer_state_dict(module, optimizer, options=_WHOLE))


def load_model(module: nn.Module, state: dict[str, Any]) -> None:
    """Cut a whole state, which each rank has, into parts."""
    set_model_state_dict(module, state, options=StateDictOptions(full_state_dict=True))


def load_optimizer(module: nn.Module, optimizer: Optimizer, state: dict[str, Any]) -> None:
    """The same for an optimizer's, whose parameters may be named or, as in one process, numbered."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    own = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
    name_of = dict(zip((key for group in state["param_groups"] for key in group["params"]), own, strict=True))
    named: dict[str, Any] = {
        "state": {name_of[key]: value for key, value in state["state"].items()},
        "param_groups": [
            {**group, "params": [name_of[key] for key in group["params"]]} for group in state["param_groups"]
        ],
    }
    set_optimizer_state_dict(module, optimizer, named, options=StateDictOptions(full_state_dict=True))
