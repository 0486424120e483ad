"""Batches a second of two worker processes: a loader's own beside torch's DataLoader, same dataset, no network.

Both sides keep their workers, take turns, and only take the batches. Three datasets: pictures with an augmentation
of about a millisecond, cheap rows, and batches of 38.5 MB. Run: ``python benchmarks/split_making.py [--turns N]``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import psutil
import torch
from common.lines import report, spread
from torch.utils.data import DataLoader, Dataset

from manyhands.split.jobs import Maker, Work
from manyhands.split.making import start_maker
from manyhands.split.recipe import Recipe

BATCH = 64
WORKERS = 2


class Augmented(Dataset[Any]):
    """Pictures that take a while."""

    def __len__(self) -> int:
        return 16 * BATCH

    def __getitem__(self, index: int) -> Any:
        picture = torch.rand(1, 3, 48, 48)
        for _ in range(12):
            picture = torch.nn.functional.avg_pool2d(picture, 3, 1, 1)
        return picture[0], index % 10


class Rows(Dataset[Any]):
    """Rows of one tensor."""

    def __init__(self) -> None:
        self.rows = torch.rand(512 * BATCH, 64)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index], index % 10


class Large(Dataset[Any]):
    """Ready pictures of 224 x 224: nothing but memory is moved."""

    def __init__(self) -> None:
        self.pictures = torch.rand(BATCH, 3, 224, 224)

    def __len__(self) -> int:
        return 24 * BATCH

    def __getitem__(self, index: int) -> Any:
        return self.pictures[index % BATCH], index % 10


def ours(maker: Maker, epoch: int, num_samples: int) -> None:
    starts = range(0, num_samples, BATCH)
    for sequence, start in enumerate(starts):
        maker.submit(Work("train", epoch, sequence, tuple(range(start, start + BATCH))))
    for _ in starts:
        maker.next()


def theirs(loader: DataLoader[Any]) -> None:
    for _ in loader:
        continue


class Side:
    """One side: a pass over the dataset, the processes that it costs, and what was measured."""

    def __init__(self, run: Callable[[], None], workers: Sequence[psutil.Process]) -> None:
        self._run = run
        self._workers = workers
        self.rates: list[float] = []
        self.processor_seconds = 0.0

    def turn(self, num_samples: int) -> None:
        before, started = self._processor_seconds(), time.perf_counter()
        self._run()
        self.rates.append(num_samples / (time.perf_counter() - started))
        self.processor_seconds += self._processor_seconds() - before

    def _processor_seconds(self) -> float:
        return sum(worker.cpu_times().user + worker.cpu_times().system for worker in self._workers)


def children() -> set[psutil.Process]:
    return set(psutil.Process().children())


def compare(dataset: Any, turns: int) -> None:
    nobody = children()
    maker = start_maker({"train": Recipe(dataset)}, WORKERS)
    ours(maker, 0, len(dataset))
    makers = children() - nobody
    loader = DataLoader(
        dataset, BATCH, num_workers=WORKERS, persistent_workers=True, multiprocessing_context="spawn"
    )
    theirs(loader)
    sides = (
        Side(lambda: ours(maker, 0, len(dataset)), list(makers)),
        Side(lambda: theirs(loader), list(children() - makers - nobody)),
    )
    for _ in range(turns):
        for side in sides:
            side.turn(len(dataset))
    maker.close()
    one, other = sides
    setup = (
        f"{WORKERS} spawned workers, batches of {BATCH}, {turns} turns; ours {spread(one.rates)}, DataLoader "
        f"{spread(other.rates)}; processor seconds of the workers {one.processor_seconds:.2f} and "
        f"{other.processor_seconds:.2f}"
    )
    name = f"split_making_{type(dataset).__name__.lower()}"
    report(name, statistics.median(one.rates), statistics.median(other.rates), "samples/s", True, setup)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=7)
    turns = parser.parse_args().turns
    for dataset in (Augmented(), Rows(), Large()):
        compare(dataset, turns)


if __name__ == "__main__":
    main()
