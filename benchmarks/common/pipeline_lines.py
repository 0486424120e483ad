"""The lines of the benchmarks that compare our pipeline with torch's: options, run, print."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence

import torch

from common.lines import report
from common.stages import WORKERS, Problem, compare


def run(name: str, description: str | None, problems: Sequence[Problem], *, steps: int) -> None:
    """One JSON line a problem."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--steps", type=int, default=steps, help="steps a turn")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for problem in problems:
        ours, theirs = compare(problem, given.turns, given.steps, warm_steps=3)
        setup = (
            f"{WORKERS} linear layers of {problem.width} on {WORKERS} workers, {problem.rows} rows, SGD, loopback, "
            f"1 thread each, {given.turns} turns of {given.steps} steps in alternation; ours ({problem.schedule}, "
            f"{problem.micro_batches} micro-batches, TLS, a boss that sends each batch): {ours}, loss at the end "
            f"{ours.loss:.6f}; theirs (torch.distributed.pipelining {problem.their_schedule}, "
            f"{problem.their_micro_batches} micro-batches, Gloo without encryption, batches at hand): {theirs}, "
            f"loss {theirs.loss:.6f}"
        )
        label = name if len(problems) == 1 else f"{name}_{problem.their_micro_batches}"
        report(
            label,
            statistics.median(ours.milliseconds),
            statistics.median(theirs.milliseconds),
            "ms",
            False,
            setup,
        )
