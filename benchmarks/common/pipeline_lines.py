"""The lines of the benchmarks that compare our pipeline with torch's: options, run, print."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence

import torch

from common.lines import report
from common.stages import WORKERS, Problem, Rival, compare


def run(name: str, description: str | None, problem: Problem, rivals: Sequence[Rival], *, steps: int) -> None:
    """One JSON line a rival."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--steps", type=int, default=steps, help="steps a turn")
    given = parser.parse_args()
    torch.set_num_threads(1)
    ours, sides = compare(problem, rivals, given.turns, given.steps, warm_steps=3)
    for rival, theirs in zip(rivals, sides, strict=True):
        setup = (
            f"{WORKERS} linear layers of {problem.width} on {WORKERS} workers, {problem.rows} rows, SGD, loopback, "
            f"1 thread each, {given.turns} turns of {given.steps} steps in alternation; ours ({problem.schedule}, "
            f"{problem.micro_batches} micro-batches, TLS, a boss that sends each batch): {ours}, loss at the end "
            f"{ours.loss:.6f}; theirs (torch.distributed.pipelining {rival.schedule}, {rival.micro_batches} "
            f"micro-batches, Gloo without encryption, batches at hand): {theirs}, loss {theirs.loss:.6f}"
        )
        report(
            name if len(rivals) == 1 else f"{name}_{rival.micro_batches}",
            statistics.median(ours.milliseconds),
            statistics.median(theirs.milliseconds),
            "ms",
            False,
            setup,
        )
