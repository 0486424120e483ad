"""The reference against loops that anyone would write."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from manyhands.training.reference import reference
from manyhands.training.seeds import epoch_order
from manyhands.training.state import weights_sha256

torch.manual_seed(0)
DATA = TensorDataset(torch.randn(50, 6), torch.randint(0, 3, (50,)))


def model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))


def plain_loop(net: nn.Module, batch_size: int, epochs: int, **clip: float) -> list[float]:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for epoch in range(epochs):
        order = epoch_order(0, epoch, len(DATA), shuffle=True)
        for at in range(0, len(order), batch_size):
            rows = order[at : at + batch_size]
            x = torch.stack([DATA[i][0] for i in rows])
            y = torch.stack([DATA[i][1] for i in rows])
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x), y)
            loss.backward()
            if clip:
                nn.utils.clip_grad_norm_(net.parameters(), clip["max_norm"])
            optimizer.step()
            losses.append(float(loss.detach()))
    return losses


def sgd(params: Any) -> Any:
    return torch.optim.SGD(params, lr=0.1, momentum=0.9)


def test_one_micro_batch_is_a_plain_loop() -> None:
    # w * grad / w is not grad to the last bit for every w; powers of two are exact, so the batch is 16 of 48.
    mine, theirs = model(), model()
    data = TensorDataset(*(t[:48] for t in DATA.tensors))
    report = reference(mine, data, batch_size=16, micro_batches=1, epochs=2, optimizer=sgd, shuffle=False)
    optimizer = sgd(theirs.parameters())
    for _ in range(2):
        for at in range(0, 48, 16):
            optimizer.zero_grad()
            nn.functional.cross_entropy(
                theirs(data.tensors[0][at : at + 16]), data.tensors[1][at : at + 16]
            ).backward()
            optimizer.step()
    assert report.weights_sha256 == weights_sha256(mine) == weights_sha256(theirs)


@pytest.mark.parametrize("clip", [None, 0.1])
def test_accumulated_leaves_are_close_to_a_plain_loop(clip: float | None) -> None:
    mine, theirs = model(), model()
    report = reference(mine, DATA, batch_size=16, micro_batches=3, epochs=3, optimizer=sgd, clip_norm=clip)
    losses = plain_loop(theirs, 16, 3, **({"max_norm": clip} if clip else {}))
    torch.testing.assert_close(report.losses, losses, rtol=1e-4, atol=1e-5)
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert (report.steps, report.samples_applied) == (12, 150)


def test_the_number_of_leaves_changes_bits_only() -> None:
    hashes = set()
    finals = []
    for micro_batches in (1, 2, 5):
        net = model()
        hashes.add(
            reference(net, DATA, batch_size=20, micro_batches=micro_batches, optimizer=sgd).weights_sha256
        )
        finals.append(next(net.parameters()).detach())
    assert len(hashes) == 3
    torch.testing.assert_close(finals[0], finals[2], rtol=1e-4, atol=1e-5)


def test_it_repeats_itself_and_depends_on_the_seed() -> None:
    def dropout() -> nn.Module:
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.4), nn.Linear(16, 3))

    def run(seed: int) -> str:
        return reference(dropout(), DATA, batch_size=16, seed=seed, max_steps=3).weights_sha256

    assert run(0) == run(0)
    assert run(0) != run(1)


def test_the_ends_of_a_run() -> None:
    assert reference(model(), DATA, batch_size=16, drop_last=True).samples_applied == 48
    assert reference(model(), DATA, batch_size=16, epochs=9, max_steps=5).steps == 5


def test_batch_norm_statistics_are_the_mean_over_leaves() -> None:
    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = nn.BatchNorm1d(6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(x))

    net = Norm()
    reference(net, DATA, batch_size=20, micro_batches=2, max_steps=1, shuffle=False)
    x = DATA.tensors[0]
    torch.testing.assert_close(net.norm.running_mean, 0.1 * (x[:10].mean(0) + x[10:20].mean(0)) / 2)
    assert net.norm.num_batches_tracked == 1, "one step, not one a leaf"
