"""What one committed step of a small model costs: a pool of two nodes against DDP over Gloo.

A model of 19k parameters computes for next to nothing, so this is the price of a round: state out, leases,
gradients in, sum, optimizer, journal, over TLS on loopback. Run: ``python benchmarks/pool_round.py``.
"""

from __future__ import annotations

import argparse
import statistics

from common.lines import report
from common.sides import compare
from common.task import Task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--steps", type=int, default=300, help="steps a turn")
    given = parser.parse_args()
    task = Task((64, 128, 72, 16, 10), leaf_rows=8, batches=64)
    pool, ddp = compare(task, given.turns, given.steps, warm_steps=20)
    setup = (
        f"{task.num_parameters():,} parameters, 2 nodes, 2 leaves of {task.leaf_rows} rows, SGD with momentum, TLS, "
        f"journal on, loopback, 1 thread each, {given.turns} turns of {given.steps} steps in alternation; "
        f"ours: {pool}; theirs (DDP, Gloo, 2 processes, same batches): {ddp}"
    )
    report(
        "pool_round",
        statistics.median(pool.milliseconds),
        statistics.median(ddp.milliseconds),
        "ms",
        False,
        setup,
    )


if __name__ == "__main__":
    main()
