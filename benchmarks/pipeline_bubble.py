"""The idle share of 1F1B on two workers of one core each, with the bubble of the theory: (p-1)/(m+p-1).

A run's log tells the idle share of each step, from the seconds that every worker computed. Both stages hold the same
layers, and so many that what else makes one wait is little beside the schedule: the way of a value, and the first
layer, which has no gradient to hand on. Run: ``python benchmarks/pipeline_bubble.py``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
from pathlib import Path

import torch
from common.lines import report
from torch import nn

from manyhands import BossMan

WORKERS = 2
WIDTH, ROWS, LAYERS = 1024, 1024, 12


async def idle_shares(log: Path, micro_batches: int, steps: int) -> list[float]:
    """The idle share of each step but the first two."""
    crew = await BossMan.setup_host(WORKERS, port=0, local=True, timeout=120)
    cores = sorted(os.sched_getaffinity(0))
    for at, member in enumerate(crew):
        os.sched_setaffinity(member.hello.pid, {cores[at % len(cores)]})
    layers = [
        (nn.Linear, {"in_features": WIDTH, "out_features": WIDTH}, (ROWS, WIDTH)) for _ in range(LAYERS)
    ]
    boss = BossMan(crew, layers, cuts=[LAYERS // 2], log=f"jsonl:{log}", snapshot_every=10**9)
    await boss.distribute_model()
    await boss.send_optimizer(torch.optim.SGD, {"lr": 0.01})
    x, y = torch.randn(ROWS, WIDTH), torch.randn(ROWS, WIDTH)
    for _ in range(steps + 2):
        await boss.train_batch(x, y, nn.MSELoss(), micro_batches=micro_batches, schedule="1f1b")
    await boss.close()
    return [json.loads(line)["idle_share"] for line in log.read_text().splitlines()][2:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--micro-batches", type=int, default=8)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="manyhands-bench-") as folder:
        os.environ["MANYHANDS_STATE_DIR"] = folder
        seen = asyncio.run(idle_shares(Path(folder) / "log.jsonl", given.micro_batches, given.steps))
    theory = (WORKERS - 1) / (given.micro_batches + WORKERS - 1)
    setup = (
        f"{WORKERS} workers pinned to a core each, {LAYERS} linear layers of {WIDTH}, {ROWS} rows, 1f1b with "
        f"{given.micro_batches} micro-batches, TLS, 1 thread each, {given.steps} steps; idle share of the median step, "
        f"the quietest one {100 * min(seen):.1f} %; theirs is (p-1)/(m+p-1); target: within 5 points"
    )
    report("pipeline_bubble", 100 * statistics.median(seen), 100 * theory, "% of all time", False, setup)


if __name__ == "__main__":
    main()
