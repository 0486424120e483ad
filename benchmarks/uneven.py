"""A node ten times slower beside a fast one: seconds a step against the fast one alone.

The slow node sleeps in its forward pass, so it takes nothing from the fast one's core. What it may cost at most is
its own last leaf. Run: ``python benchmarks/uneven.py``.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from common.cast import Cast
from common.lines import report, spread
from common.pool import Pool
from common.task import Task

WIDTHS = (256, 1024, 1024, 10)


def leaf_seconds(task: Task) -> float:
    """How long one leaf computes here, in one thread."""
    model, inputs = task.model(), torch.randn(task.leaf_rows, task.widths[0])
    targets = torch.zeros(task.leaf_rows, dtype=torch.long)
    taken = []
    for _ in range(7):
        start = time.perf_counter()
        task.criterion()(model(inputs), targets).backward()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--steps", type=int, default=10, help="steps a turn")
    parser.add_argument("--leaves", type=int, default=32, help="leaves of a step")
    parser.add_argument("--slower", type=float, default=10.0, help="how much slower the slow node is")
    given = parser.parse_args()
    torch.set_num_threads(1)
    task = Task(WIDTHS, 256, batches=2, leaves=given.leaves)
    own = leaf_seconds(task)
    pause = (given.slower - 1.0) * own
    alone: list[float] = []
    both: list[float] = []
    with Cast() as first, Cast() as second:
        one = Pool(first, task, node_hosts=(None,), pauses=(0.0,))
        two = Pool(second, task, pauses=(0.0, pause))
        one.warm_up(2)
        two.warm_up(10)
        for _ in range(given.turns):
            alone += one.turn(given.steps)[0]
            both += two.turn(given.steps)[0]
        one.end()
        leaves = two.end()
    setup = (
        f"{task.num_parameters():,} parameters, {given.leaves} leaves a step of {own * 1e3:.1f} ms on the fast node, "
        f"the other {given.slower:g} times slower (its last leaf: {own * given.slower * 1e3:.0f} ms), "
        f"{given.turns} turns of {given.steps} steps in alternation; ours (both): {spread(both)}, leaves by node "
        f"{leaves}; theirs (the fast one alone): {spread(alone)}"
    )
    report("uneven", statistics.median(both), statistics.median(alone), "ms a step", False, setup)


if __name__ == "__main__":
    main()
