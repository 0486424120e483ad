"""What `Session.prepare` makes of a script's objects: modules, optimizers, schedulers and DataLoaders for many ranks.

::

    module     ──▶ its device ──▶ DDP, averaging over the CPU, FSDP2, or itself where there is nobody else
    DataLoader ──▶ this rank's part of every global batch

Remembers all of it in a `Kept`, which is what checkpoints are of.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from manyhands.errors import UsageError
from manyhands.launch import sharding
from manyhands.launch.averaging import StagedAverage
from manyhands.launch.group import Rank
from manyhands.launch.keeping import Kept
from manyhands.launch.sharing import Share, SharedLoader

Strategy = Literal["auto", "ddp", "staged", "fsdp"]


class Preparer:
    """Prepares for one rank; `share` is told which part of the current batch is the rank's."""

    def __init__(
        self, rank: Rank, device: torch.device, strategy: Strategy, seed: int, share: Share, kept: Kept
    ) -> None:
        self._rank = rank
        self._device = device
        self._strategy = strategy
        self._seed = seed
        self._share = share
        self._kept = kept
        self._names_before: dict[int, str] = {}

    def prepare(self, objects: tuple[Any, ...]) -> tuple[Any, ...]:
        """See `Session.prepare`."""
        # Modules first: with FSDP2 an optimizer must follow its parameters.
        modules = {id(thing): self._module(thing) for thing in objects if isinstance(thing, nn.Module)}
        prepared = tuple(
            modules[id(thing)] if id(thing) in modules else self._other(thing) for thing in objects
        )
        for thing in objects:
            if isinstance(thing, Optimizer) and self._strategy == "fsdp":
                sharding.follow(thing, self._names_before, self._kept.models[0])
        return prepared

    def _module(self, module: nn.Module) -> nn.Module:
        if self._strategy == "fsdp":
            if self._kept.models:
                raise UsageError("strategy='fsdp' shards one model: give one module to prepare()")
            self._names_before = {id(p): name for name, p in module.named_parameters()}
        module.to(self._device)
        self._kept.models.append(module)
        wrapped = self._wrapped(module)
        if not self._rank.is_alone:
            wrapped.register_forward_hook(self._share.scale)
        return wrapped

    def _wrapped(self, module: nn.Module) -> nn.Module:
        if self._strategy == "fsdp":
            return sharding.shard(module, self._device, self._rank.world_size)
        if self._rank.is_alone or not any(p.requires_grad for p in module.parameters()):
            return module
        if self._strategy == "staged":
            return StagedAverage(module)
        on_gpu = self._device.type == "cuda"
        return DistributedDataParallel(module, device_ids=[self._device] if on_gpu else None)

    def _other(self, thing: Any) -> Any:
        if isinstance(thing, DataLoader):
            number = len(self._kept.loaders)
            loader = SharedLoader(thing, self._rank, self._device, self._share, self._seed, number)
            self._kept.loaders.append(loader)
            return loader
        if isinstance(thing, Optimizer):
            self._kept.optimizers.append(thing)
            return thing
        if hasattr(thing, "step") and hasattr(thing, "state_dict"):
            self._kept.schedulers.append(thing)
            return thing
        raise UsageError(
            f"prepare() takes modules, optimizers, schedulers and DataLoaders, not a {type(thing).__name__}"
        )


def unwrapped(module: nn.Module) -> nn.Module:
    """The script's own module, without what was put around it."""
    if isinstance(module, DistributedDataParallel | StagedAverage):
        inner: nn.Module = module.module
        return inner
    return module
