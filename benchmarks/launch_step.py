"""A step of data parallel training: milliseconds through `session()` against hand-written DDP, 2 ranks.

Both sides live in the same two ranks, in turns of so many steps, on equal batches: each has its model, optimizer,
sampler and loader. Run: ``python benchmarks/launch_step.py``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from common.lines import report
from torch import distributed, nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

WIDTHS = (512, 1024, 1024, 10)
BATCH, BATCHES = 256, 64


def network() -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for wide, next_wide in itertools.pairwise(WIDTHS):
        layers += [nn.Linear(wide, next_wide), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(BATCH * BATCHES, WIDTHS[0], generator=generator)
    return TensorDataset(inputs, torch.randint(0, WIDTHS[-1], (len(inputs),), generator=generator))


def steps(model: nn.Module, optimizer: Any, epochs: Callable[[], Iterator[Any]]) -> Iterator[float]:
    """One training step each, and its milliseconds, loading included."""
    batches = epochs()
    while True:
        start = time.perf_counter()
        inputs, targets = next(batches)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        yield (time.perf_counter() - start) * 1e3


def ours() -> Iterator[float]:
    import manyhands.launch

    s = manyhands.launch.session()
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    model, optimizer, loader = s.prepare(model, optimizer, DataLoader(data(), BATCH, shuffle=True))

    def epochs() -> Iterator[Any]:
        while True:
            yield from loader

    return steps(model, optimizer, epochs)


def theirs() -> Iterator[float]:
    model = nn.parallel.DistributedDataParallel(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    dataset = data()
    sampler: Any = DistributedSampler(dataset)
    loader = DataLoader(dataset, BATCH // distributed.get_world_size(), sampler=sampler)

    def epochs() -> Iterator[Any]:
        for epoch in range(1_000_000):
            sampler.set_epoch(epoch)
            yield from loader

    return steps(model, optimizer, epochs)


def run_rank(turns: int, count: int, file: Path) -> None:
    """Both sides in turns; rank 0 writes the milliseconds of each step."""
    torch.set_num_threads(1)
    sides = {"ours": ours(), "theirs": theirs()}
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(turns + 1):
        for name, side in sides.items():
            distributed.barrier()
            gaps = [next(side) for _ in range(count)]
            taken[name] += gaps if turn else []
    if distributed.get_rank() == 0:
        file.write_text(json.dumps(taken))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--steps", type=int, default=20, help="steps a turn")
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if "RANK" in os.environ:
        run_rank(given.turns, given.steps, given.file)
        return
    from manyhands.launch.launcher import launch

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "milliseconds.json"
        words = ["--turns", str(given.turns), "--steps", str(given.steps), "--file", str(file)]
        code = launch(["--nproc", "2", __file__, *words])
        if code:
            sys.exit(code)
        taken = json.loads(file.read_text())
    parameters = sum(a * b + b for a, b in itertools.pairwise(WIDTHS))
    setup = (
        f"{parameters:,} parameters fp32, global batch {BATCH}, SGD with momentum, Gloo, 2 ranks, 1 thread each, "
        f"loading included, {given.turns} turns of {given.steps} steps in alternation after one that does not count; "
        f"quartiles {_quartiles(taken['ours'])} and {_quartiles(taken['theirs'])} ms"
    )
    report(
        "launch_step",
        statistics.median(taken["ours"]),
        statistics.median(taken["theirs"]),
        "ms",
        False,
        setup,
    )


def _quartiles(values: list[float]) -> str:
    low, _, high = statistics.quantiles(values, n=4)
    return f"{low:.2f}-{high:.2f}"


if __name__ == "__main__":
    main()
