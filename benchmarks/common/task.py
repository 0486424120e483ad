"""One training task, built the same in every process: model, data, optimizer from a few numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import TensorDataset


@dataclass(frozen=True)
class Task:
    """An MLP of `widths` on random rows; by default two leaves a step, one for each of two processes."""

    widths: tuple[int, ...]
    leaf_rows: int
    batches: int
    optimizer: str = "sgd"
    leaves: int = 2
    regression: bool = False

    @property
    def batch_rows(self) -> int:
        """Rows of one optimizer step."""
        return self.leaves * self.leaf_rows

    def model(self) -> nn.Module:
        """The same weights in each process."""
        torch.manual_seed(1)
        layers: list[nn.Module] = []
        for before, after in zip(self.widths, self.widths[1:], strict=False):
            layers += [nn.Linear(before, after), nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    def rows(self) -> tuple[Tensor, Tensor]:
        """All inputs and targets, in the order in which both sides train on them."""
        generator = torch.Generator().manual_seed(2)
        count = self.batches * self.batch_rows
        inputs = torch.randn(count, self.widths[0], generator=generator)
        if self.regression:
            return inputs, torch.randn(count, self.widths[-1], generator=generator)
        return inputs, torch.randint(0, self.widths[-1], (count,), generator=generator)

    def dataset(self) -> TensorDataset:
        """The rows as a dataset."""
        return TensorDataset(*self.rows())

    def criterion(self) -> nn.Module:
        """Cross entropy over classes, or the mean square."""
        return nn.MSELoss() if self.regression else nn.CrossEntropyLoss()

    def build_optimizer(self, parameters: object) -> Optimizer:
        """SGD with momentum, or AdamW."""
        if self.optimizer == "sgd":
            return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)  # type: ignore[arg-type]
        return torch.optim.AdamW(parameters, lr=1e-3)  # type: ignore[arg-type]

    def num_parameters(self) -> int:
        """Trainable numbers."""
        return sum(a * b + b for a, b in zip(self.widths, self.widths[1:], strict=False))
