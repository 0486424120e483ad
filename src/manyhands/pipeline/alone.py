"""A pipeline's model in one process, for proofs: what the workers hold now, on this machine and by plain autograd."""

from __future__ import annotations

import torch
from torch.optim import Optimizer

from manyhands.errors import UsageError
from manyhands.pipeline.boss import BossMan
from manyhands.pipeline.recipes import build
from manyhands.pipeline.stage.optimizers import OptimizerRecipe
from manyhands.pipeline.stage.reference import OneProcess


async def alone(boss: BossMan) -> tuple[OneProcess, Optimizer]:
    """The model as it is on the workers of `boss`, with a new optimizer: the same batches give the same bits.

    For a boss that is placed and has not stepped yet. UsageError where it has no optimizer, or none of the parameters
    is trained.
    """
    deployment = boss._deployment
    stock, standing = deployment.stock, deployment.standing
    standing.check_optimizer()
    assert standing.optimizer is not None
    weights = await boss.state_dict()
    layers = [build(recipe) for recipe in stock._reading.recipes]
    with torch.no_grad():
        for layer in layers:
            for name, tensor in (*layer.named_parameters(), *layer.named_buffers()):
                tensor.copy_(weights[name])
    one = OneProcess(stock.graph, layers, run_seed=stock.settings.seed)
    one.tie()
    one.step_number = standing.passes + 1
    optimizer = OptimizerRecipe.from_text(*standing.optimizer).build(one.parameters().values())
    if optimizer is None:
        raise UsageError("this model has no parameters, so there is nothing to compare")
    return one, optimizer
