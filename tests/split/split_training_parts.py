"""Small models and data for the trainer's tests, and the plain loops that they are compared with."""

from __future__ import annotations

from typing import Any

import torch
from split_feeds import LocalFeed
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from manyhands.clock import Clock, SystemClock
from manyhands.split.training.fitting import Fit
from manyhands.split.training.learner import Learner
from manyhands.split.training.setup import Setup
from manyhands.split.twin import seeded

CPU = torch.device("cpu")


def digits(samples: int = 70, features: int = 6, classes: int = 7, seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, features, generator=generator)
    teacher = torch.randn(features, classes, generator=torch.Generator().manual_seed(99))
    return TensorDataset(x, (x @ teacher).argmax(1))


def model(features: int = 6, outputs: int = 7, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(features, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, outputs))


class Noisy(torch.utils.data.Dataset[Any]):
    """Draws at random, as augmentation does."""

    def __init__(self, base: TensorDataset) -> None:
        self.base = base

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, y = self.base[index]
        return x + 0.01 * torch.randn(x.shape), y


class Recorder:
    """A watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.notes: list[str] = []
        self.verdicts: list[str] = []

    def trained(self, record: Any, learner: Any, loss: float, pace: Any) -> None:
        self.losses.append(loss)

    def validated(self, batches: int, epoch: int) -> None:
        pass

    def epoch_over(self, record: Any, learner: Any, pace: Any) -> None:
        self.verdicts.append(pace.verdict(1))

    def note(self, text: str) -> None:
        self.notes.append(text)


def fit(feed: LocalFeed, setup: Setup, clock: Clock | None = None, **options: Any) -> tuple[Fit, Recorder]:
    learner = Learner(setup, CPU)
    learner.prepare()
    watcher = Recorder()
    validates = "val" in feed.terms.lengths
    run = Fit(
        feed, learner, feed.terms.epochs, clock or SystemClock(), watcher, validates=validates, **options
    )
    return run, watcher


def plain_loop(data: Any, net: nn.Module, epochs: int, batch_size: int, seed: int) -> list[float]:
    """What a user would write on one machine."""
    twin = seeded(data, seed)
    loader = DataLoader(
        twin, batch_size=batch_size, shuffle=True, generator=torch.Generator().manual_seed(seed)
    )
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.001, weight_decay=0.01)
    losses = []
    for epoch in range(epochs):
        twin.set_epoch(epoch)
        net.train()
        for x, y in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x), y)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    return losses
