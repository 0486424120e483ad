"""What the first worker holds of a step at its peak, 1F1B beside GPipe; and what the boss holds of the model.

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
from pathlib import Path
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
    """The same number of layers for each worker."""
    wide = (rows, width)
    pair = [(nn.Linear, {"in_features": width, "out_features": width}, wide), (nn.ReLU, {}, wide)]
    return pair * (WORKERS * LAYERS_EACH // 2)


def forget_peak(pid: int) -> int:
    """Start to count the peak anew (proc_pid_clear_refs(5)); what is resident now, in KiB."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return peak_kib(pid)


def peak_kib(pid: int) -> int:
    """The most that was resident since, in KiB."""
    rows = dict(row.split(":", 1) for row in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(rows["VmHWM"].split()[0])


async def growth(boss: BossMan, pid: int, schedule: str, micro_batches: int) -> float:
    """MiB that a step adds at its peak."""
    x, y = (torch.randn(ROWS * micro_batches, WIDTH) for _ in range(2))
    loss = nn.MSELoss()
    await boss.train_batch(x, y, loss, micro_batches=micro_batches, schedule=schedule)
    before = forget_peak(pid)
    await boss.train_batch(x, y, loss, micro_batches=micro_batches, schedule=schedule)
    return (peak_kib(pid) - before) / 1024


async def measure(micro_batches: int) -> None:
    crew = await BossMan.setup_host(WORKERS, port=0, local=True, timeout=120)
    cuts = [LAYERS_EACH, 2 * LAYERS_EACH]
    boss = BossMan(crew, layers(WIDTH, ROWS), cuts=cuts, snapshot_every=10**9)
    await boss.distribute_model()
    await boss.send_optimizer(torch.optim.SGD, {"lr": 0.01})
    pid = crew.members[0].hello.pid
    few = await growth(boss, pid, "1f1b", WORKERS)
    ours = await growth(boss, pid, "1f1b", micro_batches)
    theirs = await growth(boss, pid, "gpipe", micro_batches)
    setup = (
        f"{WORKERS} workers, {LAYERS_EACH} layers of {WIDTH} each, micro-batches of {ROWS} rows; MiB that a step adds "
        f"to worker 0 at its peak, {micro_batches} micro-batches: 1f1b, and GPipe; with {WORKERS} 1f1b adds "
        f"{few:.0f}: it grows with the workers, not with the micro-batches (what the boss has sent of a larger batch "
        f"beside: {(micro_batches - WORKERS) * ROWS * WIDTH * 4 / 2**20:.0f})"
    )
    report("pipeline_memory", ours, theirs, "MiB", False, setup)
    gc.collect()
    before = resident_kib(os.getpid())
    large = BossMan(crew, layers(LARGE, 4), cuts=cuts, snapshot_every=10**9)
    await large.distribute_model()
    await large.send_optimizer(torch.optim.SGD, {"lr": 0.01})
    await large.train_batch(torch.randn(4, LARGE), torch.randn(4, LARGE), nn.MSELoss(), micro_batches=1)
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
