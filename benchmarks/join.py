"""What joining by ``manyhands join`` costs: the time to the first gradient, and the second process in each step.

``join``: from starting the command in an empty folder to its first gradient in the run, less the import of torch
(measured beside it, turn by turn); the program was captured before. ``join_step``: milliseconds a step of one
joined machine, an agent and a compute process, beside a node in one process that brings its model, with the same
run of 10M parameters and one micro-batch. Run: ``python benchmarks/join.py [--turns N] [--steps N]``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

from manyhands.pool.server import CentralServer
from manyhands.testing import LocalCluster
from manyhands.testing.process import wait_for

TARGET_SECONDS = 1.5
ENDLESS = 1_000_000


def job(width: int) -> CentralServer:
    """Two layers of `width`; each step is one leaf, so that a step stands for an accepted gradient."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2)
    )
    data = TensorDataset(torch.randn(512, 64), torch.randint(0, 2, (512,)))
    return CentralServer(model, data, batch_size=16, micro_batches=1, epochs=ENDLESS)


@contextmanager
def joined(cluster: LocalCluster, folder: Path) -> Iterator[None]:
    """The command, from an empty folder; one thread, as the cluster's own processes."""
    env = {**os.environ, "MANYHANDS_STATE_DIR": str(cluster.state_dir), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "manyhands", "-q", "join"], cwd=folder, env=env, stderr=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def steps(cluster: LocalCluster, count: int) -> float:
    """Wait for `count` more steps; the coordinator's seconds from the first of them to the last."""
    done = len(cluster.step_seconds)
    wait_for(lambda: len(cluster.step_seconds) >= done + count, 300.0, f"{count} steps")
    seconds = list(cluster.step_seconds.values())[done : done + count]
    return seconds[-1] - seconds[0]


def import_seconds() -> float:
    """What loading torch takes, less what starting Python does."""

    def run(code: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - start

    return run("import torch") - run("pass")


def measure_join(turns: int, folder: Path) -> None:
    loads, whole = [], []
    with LocalCluster(f"{__file__}:job", nodes=0, arguments={"width": 64}) as cluster:
        with joined(cluster, folder):
            steps(cluster, 1)  # the model becomes a program once a run
        for _ in range(turns):
            loads.append(import_seconds())
            start = time.perf_counter()
            with joined(cluster, folder):
                steps(cluster, 1)
                whole.append(time.perf_counter() - start)
    net = [total - load for total, load in zip(whole, loads, strict=True)]
    setup = (
        f"median of {turns} turns ({min(net):.2f} to {max(net):.2f}) from starting the command to its first step, "
        f"{statistics.median(whole):.2f} s, less the import of torch, {statistics.median(loads):.2f} s, which it "
        "overlaps with dialling; theirs is the target"
    )
    report("join", statistics.median(net), TARGET_SECONDS, "s", setup)


def measure_step(turns: int, num_steps: int, folder: Path) -> None:
    ours, theirs = [], []
    target = f"{__file__}:job"
    for _ in range(turns):
        with LocalCluster(target, nodes=0, arguments={"width": 3100}) as cluster, joined(cluster, folder):
            steps(cluster, 5)
            ours.append(steps(cluster, num_steps) / (num_steps - 1) * 1e3)
        with LocalCluster(target, nodes=1, arguments={"width": 3100}) as cluster:
            steps(cluster, 5)
            theirs.append(steps(cluster, num_steps) / (num_steps - 1) * 1e3)
    setup = (
        f"median of {turns} turns of {num_steps} steps, 9.8M parameters, 1 node, 1 leaf a step: by an agent and a "
        f"compute process ({min(ours):.0f} to {max(ours):.0f}), and by a node in one process "
        f"({min(theirs):.0f} to {max(theirs):.0f})"
    )
    report("join_step", statistics.median(ours), statistics.median(theirs), "ms", setup)


def report(name: str, ours: float, theirs: float, unit: str, setup: str) -> None:
    figures = {"ours": round(ours, 3), "theirs": round(theirs, 3), "ratio": round(ours / theirs, 3)}
    print(
        json.dumps({"name": name, **figures, "unit": unit, "higher_is_better": False, "setup": setup}),
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure_join(given.turns, Path(folder))
        measure_step(max(1, given.turns // 2), given.steps, Path(folder))


if __name__ == "__main__":
    main()
