"""What the first worker holds at its peak, 1F1B beside GPipe; and what the boss holds of the model.

With p workers and m micro-batches 1F1B's first stage holds p micro-batches' activations, GPipe's all m. The second line
is the boss's growth while a model that nobody built is given to its workers.
Run: ``python benchmarks/pipeline_memory.py``.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import tempfile
import threading
from typing import Any

import torch
from common.lines import report
from common.process import resident_kib
from torch import nn

from manyhands import BossMan

WORKERS = 3
WIDTH, ROWS, LAYERS_EACH = 256, 1024, 6
LARGE = 1536


def layers(width: int, rows: int) -> list[Any]:
    """The same number of layers for each worker; the first takes one number, so that a batch is next to nothing."""
    wide = (rows, width)
    first = (nn.Linear, {"in_features": 1, "out_features": width}, (rows, 1))
    pair = [(nn.Linear, {"in_features": width, "out_features": width}, wide), (nn.ReLU, {}, wide)]
    return [first, pair[1], *pair * (WORKERS * LAYERS_EACH // 2 - 1)]


class Peak:
    """The most that a process holds of its own while the block runs, in MiB, looked at every millisecond.

    Memory that it shares with its neighbours does not count, so the kernel's own high-water mark is of no use.
    """

    def __init__(self, pid: int) -> None:
        self.mib = 0.0
        self._pid = pid
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._is_over.wait(0.001):
            self.mib = max(self.mib, resident_kib(self._pid) / 1024)


async def peak(boss: BossMan, pid: int, schedule: str, micro_batches: int) -> float:
    """MiB at the peak of some steps."""
    x, y = torch.randn(ROWS * micro_batches, 1), torch.randn(ROWS * micro_batches, WIDTH)
    with Peak(pid) as seen:
        for _ in range(3):
            await boss.train_batch(x, y, nn.MSELoss(), micro_batches=micro_batches, schedule=schedule)
    return seen.mib


async def measure(micro_batches: int) -> None:
    crew = await BossMan.setup_host(WORKERS, port=0, local=True, timeout=120)
    cuts = [LAYERS_EACH, 2 * LAYERS_EACH]
    boss = BossMan(crew, layers(WIDTH, ROWS), cuts=cuts, snapshot_every=10**9)
    await boss.distribute_model()
    await boss.send_optimizer(torch.optim.SGD, {"lr": 0.01})
    pid = crew.members[0].hello.pid
    # In this order, since freed memory stays with a process: each has to ask for more than the one before.
    one = await peak(boss, pid, "1f1b", 1)
    few = await peak(boss, pid, "1f1b", WORKERS) - one
    ours = await peak(boss, pid, "1f1b", micro_batches) - one
    theirs = await peak(boss, pid, "gpipe", micro_batches) - one
    setup = (
        f"{WORKERS} workers, {LAYERS_EACH} layers of {WIDTH} each, micro-batches of {ROWS} rows; MiB that worker 0 "
        f"takes at its peak beyond steps of one micro-batch, with {micro_batches} of them: 1f1b, and GPipe; with "
        f"{WORKERS} 1f1b takes {few:.0f}: it grows with the workers, not with the micro-batches"
    )
    report("pipeline_memory", ours, theirs, "MiB", False, setup)
    gc.collect()
    before = resident_kib(os.getpid())
    large = BossMan(crew, layers(LARGE, 4), cuts=cuts, snapshot_every=10**9)
    await large.distribute_model()
    await large.send_optimizer(torch.optim.SGD, {"lr": 0.01})
    await large.train_batch(torch.randn(4, 1), torch.randn(4, LARGE), nn.MSELoss(), micro_batches=1)
    gc.collect()
    held = (resident_kib(os.getpid()) - before) / 1024
    whole = sum(row["parameters"] for row in large.get_model_stats()) * 4 / 2**20
    setup = f"MiB that the boss grows by with a model of so many ({WORKERS} workers built it), one step done; <= 0.05"
    report("pipeline_memory_boss", held, whole, "MiB", False, setup)
    await large.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--micro-batches", type=int, default=12)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="manyhands-bench-") as folder:
        os.environ["MANYHANDS_STATE_DIR"] = folder
        asyncio.run(measure(given.micro_batches))


if __name__ == "__main__":
    main()
