"""What one committed step of a small model costs: a pool of two nodes against DDP over Gloo.

A model of 19k parameters computes for next to nothing, so this is the price of a round: state out, leases,
gradients in, sum, optimizer, journal, over TLS on loopback. A second line compares with the round alone: bare
gRPC with messages of that size. Run: ``python benchmarks/pool_round.py``.
"""

from __future__ import annotations

import argparse
import statistics

from common.bare import BareRounds
from common.cast import Cast
from common.lines import report, spread
from common.sides import compare
from common.task import Task


def bare_rounds(task: Task, turns: int, rounds: int) -> list[float]:
    """Milliseconds of rounds of two streams: the weights out, a gradient back."""
    num_bytes = 4 * task.num_parameters()
    with Cast() as cast:
        bare = BareRounds(cast, 2, num_bytes, num_bytes)
        bare.turn(rounds)
        taken = [taken for _ in range(turns) for taken in bare.turn(rounds)]
        bare.end()
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--steps", type=int, default=300, help="steps a turn")
    given = parser.parse_args()
    task = Task((64, 128, 72, 16, 10), leaf_rows=8, batches=64)
    pool, ddp, leaves = compare(task, given.turns, given.steps, warm_steps=20)
    ours, theirs = statistics.median(pool.milliseconds), statistics.median(ddp.milliseconds)
    common = (
        f"{task.num_parameters():,} parameters, 2 nodes, 2 leaves of {task.leaf_rows} rows, SGD with momentum, TLS, "
        f"journal on, loopback, 1 thread each, {given.turns} turns of {given.steps} steps in alternation; ours: "
        f"{pool}, leaves by node {leaves}, loss at the end {pool.loss:.6f}"
    )
    setup = f"{common}; theirs (DDP, Gloo, 2 processes, same batches): {ddp}, loss at the end {ddp.loss:.6f}"
    report("pool_round", ours, theirs, "ms", False, setup)
    rounds = bare_rounds(task, given.turns, given.steps)
    setup = f"{common}; theirs (gRPC streams over TLS, {4 * task.num_parameters():,} bytes each way): {spread(rounds)}"
    report("pool_round_vs_grpc", ours, statistics.median(rounds), "ms", False, setup)


if __name__ == "__main__":
    main()
