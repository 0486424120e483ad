"""A run that ends while a node computes: the node hears of it, however long its micro-batch takes."""

from __future__ import annotations

import threading
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from manyhands.pool.node import TrainingNode
from manyhands.pool.server import CentralServer


class Held(nn.Module):
    """Once armed it stands still in each micro-batch until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.is_armed = False
        self.stands, self.goes = threading.Event(), threading.Event()

    def forward(self, x: Tensor) -> Tensor:
        if self.is_armed:
            self.stands.set()
            assert self.goes.wait(60)
        return self.linear(x)


def test_a_node_in_the_middle_of_a_lease_hears_that_the_run_was_stopped(tmp_path: Path) -> None:
    data = TensorDataset(torch.randn(64, 4), torch.zeros(64, dtype=torch.long))
    model = Held()
    server = CentralServer(
        Held(), data, batch_size=32, micro_batches=8, epochs=10_000, port=0, checkpoint_dir=tmp_path
    )
    server.start(block=False)
    ended = threading.Event()

    def arm(loss: float, batch_id: int) -> None:
        model.is_armed = True

    def lend() -> None:
        TrainingNode(model, server.address).train(arm)
        ended.set()

    thread = threading.Thread(target=lend, daemon=True)
    thread.start()
    assert model.stands.wait(60)
    server.stop()
    server.wait()
    model.goes.set()
    assert ended.wait(30), "the node waits for a coordinator that told it goodbye"
    thread.join()
