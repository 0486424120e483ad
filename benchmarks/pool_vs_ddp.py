"""A model of 10M parameters: seconds a step of a pool of two nodes against DDP over Gloo.

Each process computes for about 100 ms, and 42 MB go each way to and from each node: what counts is processor
time a byte, and what overlaps. All processes are of one user on one machine, so the pool's large messages pass through
shared memory, as a first machine's own node has them; with ``--wire`` they go over TLS, as between machines. Run:
``python benchmarks/pool_vs_ddp.py``, and with ``--compression int8``, where a quarter of the bytes goes each way.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

import torch
from common.lines import report
from common.sides import compare
from common.task import Task

WIDTHS = (512, 2048, 2048, 2048, 256, 10)
ROWS_STEP = 8


def rows_for(milliseconds: float) -> int:
    """How many rows a leaf needs to compute that long, in one thread on this machine."""
    task = Task(WIDTHS, ROWS_STEP, 1)
    model = task.model()

    def seconds(rows: int) -> float:
        inputs, targets = torch.randn(rows, WIDTHS[0]), torch.zeros(rows, dtype=torch.long)
        taken = []
        for _ in range(5):
            start = time.perf_counter()
            torch.nn.functional.cross_entropy(model(inputs), targets).backward()  # type: ignore[no-untyped-call]
            taken.append(time.perf_counter() - start)
        return min(taken)

    few, many = seconds(32), seconds(96)
    slope = max((many - few) / 64, 1e-6)
    rows = 32 + (milliseconds / 1e3 - few) / slope
    return max(ROWS_STEP, round(rows / ROWS_STEP) * ROWS_STEP)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--steps", type=int, default=12, help="steps a turn")
    parser.add_argument("--rows", type=int, help="rows of a leaf; default: what takes 100 ms here")
    parser.add_argument("--compression", choices=("int8",), help="what the pool sends; default: fp32")
    parser.add_argument("--wire", action="store_true", help="all over TLS, nothing through shared memory")
    parser.add_argument("--optimizer", choices=("sgd", "adamw"), default="sgd")
    given = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["MANYHANDS_ADVANCED__SHARED_MEMORY"] = str(not given.wire)
    rows = given.rows or rows_for(100.0)
    task = Task(WIDTHS, rows, batches=4, optimizer=given.optimizer)
    pool, ddp, leaves = compare(task, given.turns, given.steps, warm_steps=2, compression=given.compression)
    name = {"sgd": "SGD with momentum", "adamw": "AdamW"}[given.optimizer]
    whole = 4 * task.num_parameters()
    setup = (
        f"{task.num_parameters():,} parameters fp32, sent as {given.compression or 'fp32'} (a delivery "
        f"{pool.sent_bytes / whole:.3f} of fp32, received a step, data included, {pool.received_bytes / whole:.3f}), "
        f"2 nodes, 2 leaves of {rows} rows (about 100 ms), {name}, "
        f"{'all over TLS' if given.wire else 'TLS and shared memory'}, "
        f"journal on, loopback, 1 thread each, {given.turns} turns of {given.steps} steps in alternation; "
        f"ours: {pool}, leaves by node {leaves}, loss at the end {pool.loss:.6f}; "
        f"theirs (DDP, Gloo, 2 processes, same batches): {ddp}, loss at the end {ddp.loss:.6f}"
    )
    report(
        "pool_vs_ddp" + ("_int8" if given.compression else "") + ("_wire" if given.wire else ""),
        statistics.median(pool.milliseconds),
        statistics.median(ddp.milliseconds),
        "ms",
        False,
        setup,
    )


if __name__ == "__main__":
    main()
