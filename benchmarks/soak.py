"""Ten thousand steps: whether a coordinator's memory, threads and descriptors stay where they are.

Two nodes train a small model; the coordinator is looked at after each thousand steps, between two steps and
after a garbage collection. Run: ``python benchmarks/soak.py``.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from common.cast import Cast
from common.lines import report
from common.pool import Pool
from common.process import descriptors, resident_kib, threads
from common.task import Task

PARTS = 10
ALLOWED_KIB = 64.0


def size_kib(path: Path) -> float:
    """Everything in a file or folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file()) / 1024


def saved(run: Path) -> str:
    """What the run has left on disk."""
    journal = sum(size_kib(path) for path in run.glob("*/journal.sqlite*"))
    checkpoints = sorted(run.glob("*/step-*"), key=lambda path: int(path.name.removeprefix("step-")))
    each = ", ".join(f"{path.name} {size_kib(path):.0f} KiB" for path in checkpoints)
    return f"journal {journal:.0f} KiB, checkpoints {each}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10_000)
    given = parser.parse_args()
    part = given.steps // PARTS
    task = Task((64, 128, 72, 16, 10), leaf_rows=8, batches=64)
    resident, others, taken = [], [], []
    with Cast() as cast:
        pool = Pool(cast, task, collects=True)
        pool.warm_up(1)
        for _ in range(PARTS):
            gaps, _ = pool.turn(part)
            taken.append(statistics.median(gaps))
            resident.append(resident_kib(pool.pid))
            others.append((threads(pool.pid), descriptors(pool.pid)))
        leaves = pool.end()
        cast.wait()
        disk = saved(cast.folder / "run")
    slope = statistics.linear_regression(range(PARTS), resident).slope * 1000 / part
    setup = (
        f"{task.num_parameters():,} parameters, 2 nodes, {PARTS * part:,} steps, journal on; RSS (anonymous) of the "
        f"coordinator in KiB after each {part:,} steps: {resident}; threads and descriptors first {others[0]}, last "
        f"{others[-1]}; milliseconds a step (median) first {taken[0]:.2f}, last {taken[-1]:.2f}; at the end {disk}; "
        f"leaves by node {leaves}; theirs is what is allowed"
    )
    report("soak", slope, ALLOWED_KIB, "KiB per 1,000 steps", False, setup)


if __name__ == "__main__":
    main()
