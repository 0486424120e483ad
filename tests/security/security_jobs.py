"""What the runs of these tests train: small, with names and rows that would be recognised anywhere."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from manyhands.pool.server import CentralServer

NODE_NAME = "surgery-ward-seven-desktop"
COLUMN = "confidential_blood_pressure"


class Patients(Dataset[Any]):
    """Rows of a dict whose keys are as private as its values."""

    def __init__(self, samples: int = 48) -> None:
        generator = torch.Generator().manual_seed(7)
        self.rows = torch.randn(samples, 16, generator=generator)
        self.labels = (self.rows.sum(1) > 0).long()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {COLUMN: self.rows[index], "labels": self.labels[index]}


class Diagnosis(nn.Module):
    """Its parameters' names say what it is for."""

    def __init__(self) -> None:
        super().__init__()
        self.confidential_encoder_of_symptoms = nn.Linear(16, 24)
        self.confidential_normaliser = nn.BatchNorm1d(24)
        self.confidential_decision_layer = nn.Linear(24, 2)

    def forward(self, confidential_blood_pressure: Tensor) -> Tensor:
        hidden = self.confidential_encoder_of_symptoms(confidential_blood_pressure)
        decided: Tensor = self.confidential_decision_layer(self.confidential_normaliser(hidden).relu())
        return decided


def model() -> nn.Module:
    """The same weights each time."""
    torch.manual_seed(3)
    return Diagnosis()


def build(**options: Any) -> CentralServer:
    """A server that is not started."""
    defaults: dict[str, Any] = {"batch_size": 16, "micro_batches": 2, "epochs": 2}
    return CentralServer(model(), Patients(), **{"ip": "localhost", "port": 0, **defaults, **options})
