"""A model that cannot become a program, and one with most of what lends itself to lazy loading."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from manyhands.pool.server import CentralServer


class Fickle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin(x) if float(x.sum()) > 0 else -self.lin(x)


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.mix = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.read = nn.LSTM(16, 16, batch_first=True)
        self.conv = nn.Sequential(nn.Conv1d(16, 16, 3), nn.BatchNorm1d(16), nn.GELU(), nn.Dropout(0.1))
        self.head = nn.Linear(16, 50)

    def forward(self, ids: Tensor) -> Tensor:
        x, _ = self.read(self.mix(self.embed(ids)))
        return self.head(self.conv(x.transpose(1, 2)).mean(2))


def fickle() -> CentralServer:
    return CentralServer(Fickle(), TensorDataset(torch.randn(64, 8), torch.zeros(64, dtype=torch.long)))


def wide() -> CentralServer:
    torch.manual_seed(1)
    ids = torch.randint(0, 50, (64, 12))
    return CentralServer(Wide(), TensorDataset(ids, ids[:, 0]), batch_size=16, micro_batches=4, epochs=2)
