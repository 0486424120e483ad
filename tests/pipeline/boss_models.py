"""The residual model as a layer list and as one process writes it, and crews for tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from manyhands import BossMan, wrapped_linear
from manyhands.pipeline.crew import Crew

WIDTH = 16


def residual(width: int = WIDTH) -> list[Any]:
    """Ten layers; the third's output comes in again at the seventh."""
    wide = (8, width)
    return [
        (nn.Linear, {"in_features": 1, "out_features": width}, (8, 1)),
        (nn.ReLU, {}, wide),
        (wrapped_linear, {"in_features": width, "out_features": width, "out_variables": ["res_1"]}, [wide]),
        (nn.ReLU, {}, wide),
        (nn.Linear, {"in_features": width, "out_features": width}, wide),
        (nn.ReLU, {}, wide),
        (
            wrapped_linear,
            {"in_features": width, "out_features": width, "dependencies": ["res_1"], "out_variables": []},
            [wide, wide],
        ),
        (nn.ReLU, {}, wide),
        (nn.Linear, {"in_features": width, "out_features": 1}, wide),
        (nn.Sigmoid, {}, (8, 1)),
    ]


class OneProcess(nn.Module):
    """The same model, written by hand."""

    def __init__(self, weights: Mapping[str, Tensor], width: int = WIDTH) -> None:
        super().__init__()
        self.l0, self.l2, self.l4 = nn.Linear(1, width), nn.Linear(width, width), nn.Linear(width, width)
        self.l6, self.l8 = nn.Linear(width, width), nn.Linear(width, 1)
        self.load_state_dict({f"l{name}": one.clone() for name, one in weights.items()})

    def forward(self, x: Tensor) -> Tensor:
        skip = self.l2(torch.relu(self.l0(x)))
        deep = torch.relu(self.l4(torch.relu(skip)))
        return torch.sigmoid(self.l8(torch.relu(self.l6(deep) + skip)))


def equals(weights: Mapping[str, Tensor], model: OneProcess) -> bool:
    """Whether all weights are the same bits."""
    own = model.state_dict()
    return len(weights) == len(own) and all(
        torch.equal(one, own[f"l{name}"]) for name, one in weights.items()
    )


def batch(step: int, rows: int = 8) -> tuple[Tensor, Tensor]:
    """The batch of a step: always the same one."""
    x = torch.rand(rows, 1, generator=torch.Generator().manual_seed(step)) * 6
    return x, (torch.sin(x) + 1) / 2


async def open_crew(num_workers: int) -> Crew:
    """Workers on this machine, on a free port."""
    return await BossMan.setup_host(num_workers, port=0, local=True, timeout=300)
