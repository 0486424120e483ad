"""What coordinator, nodes and reference of these tests train, by name; loaded in each of their processes.

A *gate* is a file's path: the coordinator's data waits until it exists, from the start or after some items, so
that a test begins, or ends, the run when the nodes it wants are there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from manyhands.pool.server import CentralServer
from manyhands.testing.process import wait_for

LEAF_SECONDS = 0.003
"""What a node waits in each leaf, so that nodes are equally fast on a busy machine and all get leases."""


class Rows(Dataset[Any]):
    """Rows of tensors, as a tuple or, with names, a dict."""

    def __init__(self, *tensors: Tensor, names: tuple[str, ...] = ()) -> None:
        self._tensors, self._names = tensors, names
        self.gate: Path | None = None
        self.items_before_gate = 0

    def __len__(self) -> int:
        return len(self._tensors[0])

    def __getitem__(self, index: int) -> Any:
        if self.gate is not None and threading.current_thread().name.startswith("manyhands-feeder"):
            self.items_before_gate -= 1
            if self.items_before_gate < 0:
                wait_for(self.gate.exists, 90.0, "the test that opens the gate")
                self.gate = None
        row = [tensor[index] for tensor in self._tensors]
        return dict(zip(self._names, row, strict=True)) if self._names else tuple(row)


def digits() -> Rows:
    """90 rows: of batches of 16, the last is not full."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(90, 8, generator=generator)
    return Rows(x, (x[:, 0] + x[:, 1] > 0).long() + (x[:, 2] > 0).long())


def texts() -> Rows:
    """Ragged token rows, with labels of -100 where there is padding."""
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(1, 12, (90, 10), generator=generator)
    mask = (torch.arange(10) < torch.randint(1, 11, (90, 1), generator=generator)).long()
    labels = torch.where(mask > 0, tokens, -100)
    return Rows(tokens, mask, labels, names=("input_ids", "attention_mask", "labels"))


def norm_net() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(0.3), nn.Linear(24, 3))


class Language(nn.Module):
    """Dropout, and an embedding tied to the head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix = nn.Embedding(12, 16), nn.Linear(16, 16)
        self.head, self.drop = nn.Linear(16, 12, bias=False), nn.Dropout(0.1)
        self.head.weight = self.embed.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.embed(input_ids) * attention_mask[..., None]
        logits: Tensor = self.head(self.drop(torch.tanh(self.mix(hidden))).cumsum(1))
        return logits


class Branches(nn.Module):
    """The second layer has a part in some leaves only, the third in none."""

    def __init__(self) -> None:
        super().__init__()
        self.always, self.sometimes, self.never = nn.Linear(8, 3), nn.Linear(8, 3), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.always(x)
        return out + self.sometimes(x) if x[0, 0] > 0 else out


def wide_net() -> nn.Module:
    """2.5 MB: a body of several chunks, so that half of one is no corner case."""
    return nn.Sequential(nn.Linear(8, 700), nn.ReLU(), nn.Linear(700, 900), nn.ReLU(), nn.Linear(900, 3))


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.05, momentum=0.9)


def adamw(params: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=1e-2)


def cosine(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)


# name: (model, dataset, what the server and the reference are both told); batch_size is no multiple of micro_batches
JOBS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Rows], dict[str, Any]]] = {
    "norm-sgd": (norm_net, digits, {"batch_size": 16, "micro_batches": 7, "epochs": 8, "optimizer": sgd}),
    "norm-adamw": (
        norm_net,
        digits,
        {
            "batch_size": 16,
            "micro_batches": 5,
            "epochs": 8,
            "optimizer": adamw,
            "scheduler": cosine,
            "clip_norm": 0.5,
        },
    ),
    "tokens": (Language, texts, {"batch_size": 20, "micro_batches": 6, "epochs": 8, "optimizer": adamw}),
    "branches": (Branches, digits, {"batch_size": 16, "micro_batches": 7, "epochs": 8, "optimizer": adamw}),
    "wide": (wide_net, digits, {"batch_size": 16, "micro_batches": 7, "epochs": 4, "optimizer": sgd}),
}


def parts(job: str, **changes: Any) -> tuple[nn.Module, Rows, dict[str, Any]]:
    """A job's model (the same weights each time), its dataset, and its options with `changes`."""
    make_model, make_dataset, options = JOBS[job]
    torch.manual_seed(11)
    return make_model(), make_dataset(), {**options, **changes}


def server(
    job: str, gate: str | None, items_before_gate: int, changes: dict[str, Any], **of_nodes: float
) -> CentralServer:
    model, dataset, options = parts(job, **changes)
    dataset.gate = Path(gate) if gate is not None else None
    dataset.items_before_gate = items_before_gate
    return CentralServer(model, dataset, numerics="strict", **options)


def node(job: str, leaf_seconds: float = LEAF_SECONDS, **of_server: Any) -> nn.Module:
    """The job's model, which takes its time."""
    model, _, _ = parts(job)

    def take_time(*_: Any) -> None:
        threading.Event().wait(leaf_seconds)

    model.register_forward_hook(take_time)
    return model
