"""One node of two processes against two nodes of one, on one machine: bytes to the coordinator, and step time.

Both join by ``manyhands join`` and train 10M parameters in four micro-batches of about 100 ms a step, so that each
process computes two. ``group_node_bytes`` counts what the coordinator receives a step, ``group_node`` the
milliseconds of one. Run: ``python benchmarks/group_node.py [--turns N] [--steps N]``.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from common.lines import report, spread
from common.task import Task
from pool_vs_ddp import WIDTHS, rows_for

from manyhands.pool.server import CentralServer
from manyhands.settings.children import child_environment
from manyhands.testing import LocalCluster
from manyhands.testing.process import wait_for

NUM_LEAVES = 4
WARM_STEPS = 3
AS_AFAR = {"MANYHANDS_ADVANCED__SHARED_MEMORY": "false"}
"""Machines that are lent are not the coordinator's: what they send goes over TLS."""


def job(rows: int) -> CentralServer:
    """The task of a turn, without an end."""
    task = task_of(rows)
    return CentralServer(
        task.model(),
        task.dataset(),
        batch_size=task.batch_rows,
        micro_batches=task.leaves,
        shuffle=False,
        epochs=1_000_000,
        criterion=task.criterion(),
        optimizer=task.build_optimizer,
        checkpoint_interval=1e6,
    )


def task_of(rows: int) -> Task:
    return Task(WIDTHS, rows, batches=4, leaves=NUM_LEAVES)


@dataclass
class Side:
    """`machines` nodes of `nproc` processes: what each step took, and what the coordinator received of it."""

    machines: int
    nproc: int
    milliseconds: list[float] = field(default_factory=list)
    step_bytes: list[float] = field(default_factory=list)

    def take_turn(self, rows: int, steps: int) -> None:
        """A run of its own, of which `steps` steps count."""
        with LocalCluster(f"{__file__}:job", nodes=0, arguments={"rows": rows}, env=AS_AFAR) as cluster:
            machines = [self._join(cluster, number) for number in range(self.machines)]
            try:
                self._wait_for_all(cluster)
                self._measure(cluster, steps)
            finally:
                for machine in machines:
                    machine.kill()
                    machine.wait()

    def _join(self, cluster: LocalCluster, number: int) -> subprocess.Popen[bytes]:
        env = {"MANYHANDS_STATE_DIR": str(cluster.state_dir), "OMP_NUM_THREADS": "1", **AS_AFAR}
        command = [sys.executable, "-m", "manyhands", "-v", "join", "--nproc", str(self.nproc)]
        with (cluster.folder / f"join-{number}.txt").open("wb") as log:
            return subprocess.Popen(command, env=child_environment(env), stdout=log, stderr=log)

    def _wait_for_all(self, cluster: LocalCluster) -> None:
        """Until every process takes part: the logs say so, and asking would cost what is measured."""
        signs = [f"rank {rank} takes part" for rank in range(1, self.nproc)] or ["joined run"]
        logs = [cluster.folder / f"join-{number}.txt" for number in range(self.machines)]

        def look() -> bool:
            return all(sign in log.read_text() for log in logs for sign in signs)

        wait_for(look, 120.0, "every process at work")

    def _measure(self, cluster: LocalCluster, steps: int) -> None:
        first = max(cluster.step_seconds, default=0) + WARM_STEPS
        cluster.wait_step(first, 300.0)
        before = cluster.status()
        cluster.wait_step(first + steps, 300.0)
        after = cluster.status()
        received = sum(node["sent_bytes"] for node in after["nodes"])
        received -= sum(node["sent_bytes"] for node in before["nodes"])
        self.step_bytes.append(received / (after["step"] - before["step"]))
        ends = [at for step, at in sorted(cluster.step_seconds.items()) if step >= first]
        self.milliseconds += [(b - a) * 1e3 for a, b in pairwise(ends)][:steps]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=25, help="steps a turn")
    parser.add_argument("--rows", type=int, help="rows of a micro-batch; default: what takes 100 ms here")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = given.rows or rows_for(100.0)
    group, pair = Side(machines=1, nproc=2), Side(machines=2, nproc=1)
    for _ in range(given.turns):
        group.take_turn(rows, given.steps)
        pair.take_turn(rows, given.steps)
    setup = (
        f"{task_of(rows).num_parameters():,} parameters fp32, SGD with momentum, {NUM_LEAVES} micro-batches of {rows} "
        f"rows a step, TLS, journal on, loopback, 1 thread a process, {given.turns} turns of {given.steps} steps in "
        f"alternation, each a run of its own; ours, 1 node of 2 processes: {spread(group.milliseconds)} ms; theirs, "
        f"2 nodes of 1: {spread(pair.milliseconds)} ms"
    )
    ours, theirs = (statistics.median(side.milliseconds) for side in (group, pair))
    report("group_node", ours, theirs, "ms", False, setup)
    ours, theirs = (statistics.median(side.step_bytes) for side in (group, pair))
    report("group_node_bytes", ours, theirs, "bytes a step", False, setup)


if __name__ == "__main__":
    main()
