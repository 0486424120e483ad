"""The demo's job: 1,797 handwritten digits that people wrote, and a small network that learns to read them.

Real data, which scikit-learn ships in its wheel, so nothing is fetched. `job` is a target as ``serve`` and
``verify`` take it: the coordinator, the nodes and the reference each build it for themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from manyhands.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.utils.data import TensorDataset

    from manyhands.pool.server import CentralServer

TARGET = "manyhands.cli.digits:job"
EPOCHS = 8
MICRO_BATCHES = 8
_BATCH_SIZE = 64
_TEST_SHARE = 5
_SEED = 0


def job() -> CentralServer:
    """The server that trains the network on four digits of five; not started."""
    import torch

    from manyhands.pool.server import CentralServer

    train, _ = digits()
    return CentralServer(
        network(),
        train,
        batch_size=_BATCH_SIZE,
        micro_batches=MICRO_BATCHES,
        epochs=EPOCHS,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=2e-3),
        numerics="strict",
        seed=_SEED,
    )


def network() -> nn.Module:
    """Images (B, 1, 8, 8) in [0, 1] to logits (B, 10); the same weights each time."""
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.25),
            nn.Linear(32 * 16, 10),
        )


def digits() -> tuple[TensorDataset, TensorDataset]:
    """Digits to train on and digits to test with, none in both. UsageError where scikit-learn is absent."""
    import torch
    from torch.utils.data import TensorDataset

    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UsageError(
            "the demo's handwritten digits come with scikit-learn, which is not installed: "
            'pip install "manyhands[demo]"'
        ) from None
    found = load_digits()
    images = torch.from_numpy(found.images).to(torch.float32).unsqueeze(1) / 16.0
    targets = torch.from_numpy(found.target).to(torch.int64)
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(_SEED))
    test, train = order[: len(order) // _TEST_SHARE], order[len(order) // _TEST_SHARE :]
    return TensorDataset(images[train], targets[train]), TensorDataset(images[test], targets[test])


def num_leaves() -> int:
    """About how many micro-batches the job has."""
    train, _ = digits()
    return EPOCHS * -(-len(train) * MICRO_BATCHES // _BATCH_SIZE)


def accuracy(model: nn.Module, dataset: TensorDataset) -> float:
    """The share of a dataset's images that `model` reads right."""
    import torch

    images, targets = dataset.tensors
    model.eval()
    with torch.no_grad():
        read: torch.Tensor = model(images).argmax(1)
    return float((read == targets).double().mean())
