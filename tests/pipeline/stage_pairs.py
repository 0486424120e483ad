"""Training a model cut into stages beside the same model in one process."""

from __future__ import annotations

from typing import Any

import torch
from stage_models import WIDTH, Model, assert_same_bits, schedule
from torch import Tensor, nn

from manyhands.pipeline.stage.engine import StageSettings
from manyhands.pipeline.stage.local import LocalPipeline
from manyhands.pipeline.stage.optimizers import OptimizerRecipe
from manyhands.training.objective import Objective

SCHEDULES = ["naive", "gpipe", "1f1b", "interleaved", "zero_bubble"]
MEAN = Objective(nn.MSELoss())
Batches = list[tuple[Tensor, Tensor]]


def batches(num_steps: int, num_samples: int = 8, width: int = WIDTH) -> Batches:
    return [(torch.randn(num_samples, width), torch.randn(num_samples, WIDTH)) for _ in range(num_steps)]


def train(
    model: Model,
    bounds: tuple[int, ...],
    data: Batches,
    *,
    name: str = "naive",
    settings: StageSettings | None = None,
    optimizer: type[torch.optim.Optimizer] = torch.optim.SGD,
    options: dict[str, Any] | None = None,
    objective: Objective = MEAN,
    tolerance: float = 0.0,
    **step: Any,
) -> LocalPipeline:
    """Train both alike; every loss, weight and buffer is equal, or within `tolerance`. Returns the pipeline."""
    chosen, given = settings or StageSettings(), options or {"lr": 0.05}
    pipeline = model.pipeline(bounds, chosen)
    pipeline.set_optimizer(OptimizerRecipe.of(optimizer, given))
    autocast = torch.bfloat16 if chosen.precision == "bf16" else None
    reference = model.one_process(chosen.run_seed, autocast)
    stepped = optimizer(reference.parameters().values(), **given)
    plan = schedule(name, len(bounds) - 1, step.get("num_micro_batches", 1))
    for x, target in data:
        mine = pipeline.train_batch(plan, x, target, objective, **step)
        theirs = reference.train_batch(stepped, x, target, objective, **step)
        assert abs(mine - theirs) <= tolerance
    assert len(pipeline.trace) == sum(len(operations) for operations in plan)
    if tolerance:
        for tensor_name, tensor in reference.tensors().items():
            torch.testing.assert_close(pipeline.tensors()[tensor_name], tensor, rtol=0, atol=tolerance)
    else:
        assert_same_bits(pipeline.tensors(), reference.tensors())
    return pipeline
