"""What an inference's result takes in memory at its peak, beside the way it is usually written down: a list of parts.

100,000 rows of 1,000 classes, each side in a fresh process: `ours` is the loader's sink fed by the trainer's reduction;
`theirs` collects each batch's arrays in a list and concatenates at the end, the same columns. The peak is the growth
of the resident set, of which the outputs of one batch are a part too. Run: ``python benchmarks/infer_memory.py``.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import threading
from typing import Any

import numpy as np
import psutil
import torch
from common.lines import report

from manyhands.split.inference.collecting import InMemory
from manyhands.split.inference.reducing import reduce_output
from manyhands.split.inference.wishes import Wishes

ROWS, CLASSES, BATCH = 100_000, 1_000, 250
WARM_BATCHES = 8
WISHES = {
    "infer_memory_top5": Wishes(top_k=5),
    "infer_memory_full": Wishes(top_k=5, return_full_probabilities=True),
}


def ours(wishes: Wishes) -> int:
    sink = InMemory({}, ROWS)
    for start in range(0, ROWS, BATCH):
        sink.add(BATCH, columns(wishes, start))
    return arrays_bytes(sink.finish())


def theirs(wishes: Wishes) -> int:
    parts: dict[str, list[Any]] = {}
    for start in range(0, ROWS, BATCH):
        for name, column in columns(wishes, start).items():
            parts.setdefault(name, []).append(column)
    return arrays_bytes({name: np.concatenate(columns) for name, columns in parts.items()})


def columns(wishes: Wishes, start: int) -> dict[str, Any]:
    return reduce_output(torch.randn(BATCH, CLASSES), wishes, tuple(range(start, start + BATCH)))


def arrays_bytes(result: dict[str, Any]) -> int:
    return sum(value.nbytes for value in result.values() if isinstance(value, np.ndarray))


def measure(side: str, name: str, answers: Any) -> None:
    """In a process of its own: the peak of what is taken above a few batches, and what the arrays hold."""
    torch.set_num_threads(1)
    wishes = WISHES[name]
    for _ in range(WARM_BATCHES):  # what torch and the allocator take once
        columns(wishes, 0)
    process = psutil.Process()
    before = peak = process.memory_info().rss
    over = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.001):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    held = {"ours": ours, "theirs": theirs}[side](wishes)
    over.set()
    watcher.join()
    answers.put(((peak - before) / 2**20, held / 2**20))


def main(turns: int) -> None:
    spawn = multiprocessing.get_context("spawn")
    for name in WISHES:
        seen: dict[str, list[tuple[float, float]]] = {"ours": [], "theirs": []}
        for _ in range(turns):
            for side, found in seen.items():
                answers = spawn.Queue()
                process = spawn.Process(target=measure, args=(side, name, answers))
                process.start()
                found.append(answers.get(timeout=300))
                process.join()
        peaks = {side: statistics.median(peak for peak, _ in found) for side, found in seen.items()}
        held = seen["ours"][0][1]
        setup = (
            f"{ROWS:,} rows x {CLASSES:,} classes, batches of {BATCH}, arrays of {held:.1f} MiB, "
            f"peak over arrays {peaks['ours'] / held:.3f}, {turns} turns"
        )
        report(name, peaks["ours"], peaks["theirs"], "MiB", higher_is_better=False, setup=setup)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=3)
    main(parser.parse_args().turns)
