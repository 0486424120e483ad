"""Modules as people write them, for whole pipelines: long and short skips, masks, norms, tied tables."""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTH = 12


class Forked(nn.Module):
    """A skip made by the first layer and taken by three later ones, a mask taken twice, an output used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.l0, self.l1, self.l2 = nn.Linear(4, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.l3, self.l4, self.l5 = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        skip = torch.tanh(self.l0(x)).masked_fill(mask, 0.0)
        first = torch.relu(self.l1(skip) + skip)
        second = torch.sin(self.l2(first)) * skip
        third = self.l3(second).masked_fill(mask, 0.5) + skip
        fourth = torch.tanh(self.l4(third)) + third
        return self.l5(fourth * first)


class Far(nn.Module):
    """For a stage a line: a skip from the first to the second and the fourth, a mask on the first and the third, and
    the second's output taken by both that follow.
    """

    def __init__(self) -> None:
        super().__init__()
        self.l0, self.l1, self.l2 = nn.Linear(4, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.l3, self.l4 = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        skip = torch.tanh(self.l0(x)).masked_fill(mask, 0.0)
        first = torch.relu(self.l1(skip) + skip)
        second = self.l2(first).masked_fill(mask, 0.5)
        return self.l4(torch.tanh(self.l3(second) + skip) * first)


class Normed(nn.Module):
    """Convolutions with statistics, as a residual block has them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * 9, 2)

    def forward(self, x: Tensor) -> Tensor:
        skip = torch.relu(self.norm1(self.conv1(x)))
        out = torch.relu(self.norm2(self.conv2(skip)) + skip)
        return self.head(out.flatten(1))


class Tied(nn.Module):
    """Token and output tables are one parameter; three blocks between them, all with a skip."""

    def __init__(self, tokens: int = 11) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(tokens, WIDTH), nn.Embedding(6, WIDTH)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))
        self.thinks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.head = nn.Linear(WIDTH, tokens, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        for norm, think in zip(self.norms, self.thinks, strict=True):
            x = x + torch.tanh(think(norm(x)))
        return self.head(x).transpose(1, 2)


def dropping() -> nn.Module:
    """Layers that draw random numbers between layers that don't."""
    return nn.Sequential(
        nn.Linear(4, WIDTH), nn.Dropout(0.5), nn.Linear(WIDTH, WIDTH), nn.Dropout(0.3), nn.ReLU(),
        nn.Linear(WIDTH, WIDTH), nn.Dropout(0.2), nn.Linear(WIDTH, 2),
    )  # fmt: skip


def made(kind: type[nn.Module], seed: int = 5) -> nn.Module:
    """A module with the same first weights each time."""
    torch.manual_seed(seed)
    return kind()
