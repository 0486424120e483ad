"""What the clusters of these tests train: small, seeded, with BatchNorm and Dropout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

from manyhands.clock import SystemClock
from manyhands.pool.server import CentralServer


class Gated(TensorDataset):
    """Items that take a while each, until the file `gate` is there: nobody has finished before it is."""

    def __init__(self, *tensors: torch.Tensor, gate: Path) -> None:
        super().__init__(*tensors)
        self._gate = gate

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        if not self._gate.exists():
            SystemClock().sleep(0.02)
        return super().__getitem__(index)


def dataset(samples: int = 96) -> TensorDataset:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(samples, 8, generator=generator)
    return TensorDataset(x, (x.sum(1) > 0).long())


def model(width: int = 16) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Linear(8, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, 2)
    )


def build(*, width: int = 16, gate: str = "", **options: Any) -> CentralServer:
    defaults: dict[str, Any] = {"batch_size": 16, "micro_batches": 4, "epochs": 4, "numerics": "strict"}
    data = Gated(*dataset().tensors, gate=Path(gate)) if gate else dataset()
    return CentralServer(model(width), data, **{**defaults, **options})


def other_model() -> nn.Module:
    return nn.Linear(8, 2)


def restless() -> CentralServer:
    generator = torch.Generator()
    generator.seed()
    data = TensorDataset(torch.randn(64, 8, generator=generator), torch.zeros(64, dtype=torch.long))
    return CentralServer(model(), data, batch_size=16, micro_batches=2, epochs=4)
