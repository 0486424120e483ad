"""The jobs that coordinator, nodes and reference of these tests each build for themselves, by name."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

GATE = threading.Event()
"""Closed: the coordinator's feeder waits, so that a run begins when every node is there."""


class Rows(Dataset[Any]):
    """Rows of a TensorDataset; the coordinator's feeder waits at the gate."""

    def __init__(self, *tensors: Tensor) -> None:
        self.rows = TensorDataset(*tensors)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        if threading.current_thread().name.startswith("manyhands-feeder"):
            GATE.wait(30)
        return self.rows[index]


class Augmented(Rows):
    """Draws random numbers for each item, as image augmentations do."""

    def __getitem__(self, index: int) -> Any:
        x, y = super().__getitem__(index)
        return x + 0.1 * torch.randn_like(x), y


class Texts(Rows):
    """Ragged token rows: labels of -100 where there is padding."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(5)
        tokens = torch.randint(1, 12, (90, 10), generator=generator)
        lengths = torch.randint(1, 11, (90, 1), generator=generator)
        self.mask = (torch.arange(10) < lengths).long()
        super().__init__(tokens)

    def __getitem__(self, index: int) -> Any:
        (tokens,), mask = super().__getitem__(index), self.mask[index]
        return {
            "input_ids": tokens,
            "attention_mask": mask,
            "labels": torch.where(mask > 0, tokens, -100),
            "unused": "text",
        }


def classes(num: int = 150, kind: Callable[..., Any] = Rows) -> Any:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(num, 8, generator=generator)
    return kind(x, (x[:, 0] + x[:, 1] > 0).long() + (x[:, 2] > 0).long())


def norm_net() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(0.3), nn.Linear(24, 3))


class Language(nn.Module):
    """Tied embedding and head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 16)
        self.mix = nn.Linear(16, 16)
        self.head = nn.Linear(16, 12, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.embed(input_ids) * attention_mask[..., None]
        return self.head(torch.tanh(self.mix(hidden)).cumsum(1))  # type: ignore[no-any-return]


class Branches(nn.Module):
    """Its second layer has a part in some leaves only; its buffer is no normalisation statistic."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.never = nn.Linear(8, 3), nn.Linear(8, 3), nn.Linear(2, 2)
        self.register_buffer("seen", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
        out = self.a(x)
        return out + self.b(x) if x[0, 0] > 0 else out  # type: ignore[no-any-return]


def wide_net() -> nn.Module:
    """More than one chunk, and more than one part of an update."""
    return nn.Sequential(nn.Linear(8, 700), nn.ReLU(), nn.Linear(700, 900), nn.ReLU(), nn.Linear(900, 3))


def sgd(params: Any) -> Any:
    return torch.optim.SGD(params, lr=0.05, momentum=0.9)


def adamw(params: Any) -> Any:
    return torch.optim.AdamW(params, lr=1e-2)


def cosine(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)


def tiny_weight() -> nn.Module:
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(0.01)
    return model


class Counter(nn.Module):
    """Counts its data in an integer, so that two leaves never agree."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(8, 3)
        self.register_buffer("total", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.total.add_((x > 0).sum())
        return self.lin(x)  # type: ignore[no-any-return]


def with_nan() -> Any:
    rows = classes(48)
    rows.rows.tensors[0][13] = float("nan")
    return rows


class Bad(Rows):
    """Two items cannot be loaded."""

    def __getitem__(self, index: int) -> Any:
        item = super().__getitem__(index)
        if index in (0, 5):
            raise OSError(f"no file for {index}")
        return item


class Picky(nn.Module):
    """Cannot compute one row, or keeps a note of it in a buffer that it leaves alone otherwise."""

    def __init__(self, *, notes: bool) -> None:
        super().__init__()
        self.lin, self.notes = nn.Linear(8, 3), notes
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if bool((x == 77.0).any()):
            if not self.notes:
                raise ValueError("a row of 77s")
            self.seen.add_(1.0)
        return self.lin(x)  # type: ignore[no-any-return]


def with_77() -> Any:
    rows = classes(48)
    rows.rows.tensors[0][30] = 77.0
    return rows


class BadLater(Rows):
    """One item cannot be loaded; it is in none of the probe's leaves."""

    def __getitem__(self, index: int) -> Any:
        item = super().__getitem__(index)
        if index == 30:
            raise OSError(f"no file for {index}")
        return item


def numbers(kind: Callable[..., Any] = Rows) -> Any:
    x = classes(48).rows.tensors[0]
    return kind(x, x.sum(1, keepdim=True))


# name: (model, dataset, what CentralServer and the reference are both told)
JOBS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], dict[str, Any]]] = {
    "norm": (norm_net, classes, {"batch_size": 16, "micro_batches": 5, "epochs": 2, "optimizer": sgd}),
    "tokens": (Language, Texts, {"batch_size": 20, "micro_batches": 6, "epochs": 2, "optimizer": adamw}),
    "branches": (
        Branches,
        classes,
        {"batch_size": 16, "micro_batches": 8, "optimizer": adamw, "scheduler": cosine, "clip_norm": 0.3},
    ),
    "bf16": (norm_net, classes, {"batch_size": 16, "precision": "bf16", "optimizer": sgd, "seed": 9}),
    "fp16": (norm_net, classes, {"batch_size": 16, "precision": "fp16", "optimizer": sgd, "epochs": 3}),
    "regression": (
        lambda: nn.Linear(8, 1),
        numbers,
        {"batch_size": 16, "criterion": nn.MSELoss(), "epochs": 2, "optimizer": sgd},
    ),
    "bad-later": (
        lambda: nn.Linear(8, 1),
        lambda: numbers(BadLater),
        {"batch_size": 16, "criterion": nn.MSELoss(), "epochs": 2},
    ),
    "picky": (lambda: Picky(notes=False), with_77, {"batch_size": 16}),
    "notes": (lambda: Picky(notes=True), with_77, {"batch_size": 16}),
    "bf16-model": (
        lambda: Branches().to(torch.bfloat16),
        lambda: classes(kind=lambda x, y: Rows(x.bfloat16(), y)),
        {"batch_size": 24, "micro_batches": 6, "optimizer": sgd, "clip_norm": 0.5},
    ),
    "sum": (
        lambda: nn.Linear(8, 3),
        classes,
        {"batch_size": 16, "criterion": nn.CrossEntropyLoss(reduction="sum"), "optimizer": sgd},
    ),
    "weighted": (
        lambda: nn.Linear(8, 3),
        classes,
        {"batch_size": 16, "criterion": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0, 0.2]))},
    ),
    "augmented": (
        norm_net,
        lambda: classes(kind=Augmented),
        {"batch_size": 32, "micro_batches": 4, "epochs": 2},
    ),
    "wide": (wide_net, classes, {"batch_size": 50, "micro_batches": 7, "epochs": 2, "optimizer": adamw}),
    "nan": (lambda: nn.Linear(8, 3), with_nan, {"batch_size": 16, "micro_batches": 4, "optimizer": sgd}),
    # Each leaf's gradient is 2e38, which fp32 holds; the sum of two it does not.
    "overflow": (
        tiny_weight,
        lambda: Rows(torch.full((16, 1), 1e38), torch.full((16, 1), -1.0)),
        {"batch_size": 8, "criterion": nn.L1Loss(reduction="sum"), "optimizer": sgd},
    ),
    "bad": (
        lambda: nn.Linear(8, 3),
        lambda: classes(48, Bad),
        {"batch_size": 16, "micro_batches": 4, "shuffle": False},
    ),
    "counter": (Counter, classes, {"batch_size": 16, "micro_batches": 2}),
    "linear": (lambda: nn.Linear(8, 3), classes, {"batch_size": 16, "micro_batches": 4, "max_steps": 6}),
}


def build(name: str) -> tuple[nn.Module, Any, dict[str, Any]]:
    """A job's model (the same weights each time), its dataset and its options."""
    make_model, make_dataset, options = JOBS[name]
    torch.manual_seed(11)
    return make_model(), make_dataset(), dict(options)
