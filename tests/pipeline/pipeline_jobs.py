"""What ``manyhands verify`` is given for a pipeline: functions of workers."""

from __future__ import annotations

from typing import Any

import torch
from boss_models import batch, residual
from torch import nn

from manyhands import BossMan


def residual_job(workers: Any) -> tuple[BossMan, nn.Module, list[Any]]:
    """A layer list, and the optimizer was forgotten."""
    return BossMan(workers, residual()), nn.MSELoss(), [batch(step) for step in range(10)]


async def module_job(workers: Any) -> tuple[BossMan, nn.Module, list[Any]]:
    """A module with dropout, which its first batch places."""
    torch.manual_seed(2)
    model = nn.Sequential(
        nn.Linear(1, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1)
    )
    boss = BossMan(workers, model)
    await boss.send_optimizer(torch.optim.Adam, {"lr": 1e-2})
    return boss, nn.MSELoss(), [batch(step) for step in range(10)]


async def nothing(workers: Any) -> BossMan:
    """It returns too little."""
    return BossMan(workers, residual())
