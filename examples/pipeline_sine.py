"""A boss: cuts a residual model over workers and fits sin(x), with its loss curve as a picture.

    python examples/pipeline_sine.py --local        the boss and two workers, all here
    python examples/pipeline_sine.py                prints the line for the workers: manyhands worker mh://...

The picture needs matplotlib: pip install "manyhands[plot]".
"""

import argparse
import asyncio
import math
from pathlib import Path

import torch
from torch import Tensor, nn

from manyhands import BossMan, wrapped_linear

WIDE = (32, 512)
MODEL = [
    (nn.Linear, {"in_features": 1, "out_features": 512}, (32, 1)),
    (nn.ReLU, {}, WIDE),
    (wrapped_linear, {"in_features": 512, "out_features": 512, "out_variables": ["res_1"]}, [WIDE]),
    (nn.ReLU, {}, WIDE),
    (nn.Linear, {"in_features": 512, "out_features": 512}, WIDE),
    (nn.ReLU, {}, WIDE),
    (wrapped_linear, {"in_features": 512, "out_features": 512, "dependencies": ["res_1"]}, [WIDE, WIDE]),
    (nn.ReLU, {}, WIDE),
    (nn.Linear, {"in_features": 512, "out_features": 1}, WIDE),
    (nn.Sigmoid, {}, (32, 1)),
]


def get_batch(size: int) -> tuple[Tensor, Tensor]:
    """Points of one period, and their sine moved into the sigmoid's range."""
    x = torch.rand(size, 1) * 2 * math.pi - math.pi
    return x, (torch.sin(x) + 1) / 2


async def train(num_workers: int, epochs: int, local: bool, port: int | None) -> list[float]:
    """The loss of each step."""
    workers = await BossMan.setup_host(num_workers, port=port, local=local)
    boss = BossMan(workers, MODEL)
    await boss.distribute_model()
    await boss.send_optimizer(torch.optim.Adam, {"lr": 1e-3})
    boss.gather_dependencies()
    loss_fn = nn.MSELoss()
    losses = []
    for epoch in range(epochs):
        x, y = get_batch(32)
        prediction = await boss.forward(x, {})
        loss = loss_fn(prediction, y)
        loss.backward()
        await boss.backward(prediction.grad)
        await boss.optim_step()
        losses.append(loss.item())
        if (epoch + 1) % 50 == 0:
            print(f"step {epoch + 1}: loss {losses[-1]:.5f}", flush=True)
    await boss.close()
    return losses


def plot(losses: list[float], path: Path) -> None:
    """Draw the loss curve; without matplotlib say how to get it."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print('no picture: pip install "manyhands[plot]" draws one')
        return
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.semilogy(losses)
    axes.set(xlabel="step", ylabel="mean squared error", title="sin(x), one model on several workers")
    figure.savefig(path)
    print(f"drawn: {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Fit sin(x) with one model on several workers.")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=400)
    parser.add_argument("--local", action="store_true", help="start the workers here too")
    parser.add_argument("--port", type=int, default=None)
    parser.add_argument("--plot", type=Path, default=Path("pipeline_sine.png"))
    given = parser.parse_args()

    torch.manual_seed(0)
    losses = asyncio.run(train(given.workers, given.epochs, given.local, given.port))
    last = losses[-20:]
    print(f"mean loss of the last {len(last)} steps {sum(last) / len(last):.6f}")
    plot(losses, given.plot)


if __name__ == "__main__":
    main()
