"""What a coordinator costs: leases a second over 50 connections, memory an idle node, nodes that come and go.

Everything is real but the nodes, which compute nothing (common/light.py): TLS, sessions, lease machine, sums,
optimizer, journal. Run: ``python benchmarks/coordinator.py``. The lease machine alone: coordinator_pure.py.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import threading
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

from common.bare import BareRounds
from common.cast import Cast, answer, prepare_process
from common.light import run_hall, wide_invite
from common.lines import report
from common.pool import Coordinator
from common.process import descriptors, processor_seconds, resident_kib, threads
from common.task import Task

IDLE_TARGET_KIB = 256.0
WIDTHS = (8, 4)


def say(pipe: Pipe, *word: Any) -> Any:
    """One word to a hall of light nodes, and its answer."""
    pipe.send(word)
    return answer(pipe)


# ---- leases a second --------------------------------------------------------------------------------


def leases(connections: int, turns: int, steps: int) -> None:
    """A step has a leaf for each connection, so each step is that many leases; one message each way a lease.

    The nodes are told which samples to take (data="local"), so that loading them is no part of it.
    """
    task = Task(WIDTHS, leaf_rows=1, batches=8, leaves=connections, regression=True)
    ours, theirs, seconds, bare_seconds = [], [], [], []
    with Cast() as cast:
        coordinator = Coordinator(cast, task, data="local")
        line = wide_invite(cast.folder, coordinator.address[1], 4 * connections)
        halls = [cast.start(run_hall, line, task)[0] for _ in range(2)]
        for hall, share in zip(halls, (connections // 2, connections - connections // 2), strict=True):
            say(hall, "join", share)
        for hall in halls:
            say(hall, "work")
        coordinator.turn(steps)
        granted, received, sent = (
            sum(each) for each in zip(*(say(hall, "traffic") for hall in halls), strict=True)
        )
        bare = BareRounds(cast, connections, received // granted, sent // granted)
        bare.turn(steps)
        for _ in range(turns):
            before = processor_seconds(coordinator.pid)
            gaps, _ = coordinator.turn(steps)
            seconds.append((processor_seconds(coordinator.pid) - before) / (steps * connections))
            ours.append(connections * 1e3 / statistics.median(gaps))
            before = bare.processor_seconds()
            theirs.append(connections * 1e3 / statistics.median(bare.turn(steps)))
            bare_seconds.append((bare.processor_seconds() - before) / (steps * connections))
        total = sum(say(hall, "traffic")[0] for hall in halls)
        coordinator.finish()
        bare.end()
        for hall in halls:
            say(hall, "end")
    setup = (
        f"{connections} connections from 2 processes, TLS, journal on, {connections} leaves and leases a step, "
        f"{received // granted} bytes out and {sent // granted} in a lease, median of {turns} turns of {steps} "
        f"steps in alternation, {total} leases in all; target 6,000; theirs: bare gRPC streams, same messages and "
        f"rhythm; processor time of the listening process a lease: ours {statistics.median(seconds) * 1e6:.0f} us, "
        f"theirs {statistics.median(bare_seconds) * 1e6:.0f} us"
    )
    report("coordinator_leases", statistics.median(ours), statistics.median(theirs), "leases/s", True, setup)


# ---- memory -----------------------------------------------------------------------------------------


def run_watched(pipe: Pipe, folder: str, task: Task) -> None:
    """A CentralServer that trains nothing: each word asks what its process holds, and `False` ends it."""
    prepare_process(folder)
    from manyhands.pool.server import CentralServer

    server = CentralServer(
        task.model(),
        task.dataset(),
        batch_size=task.batch_rows,
        micro_batches=task.leaves,
        port=0,
        checkpoint_dir=Path(folder) / "run",
    )
    server.start(block=False)
    pipe.send(server.address)
    while pipe.recv():
        gc.collect()
        pipe.send(len(server.status()["nodes"]))
    server.stop()
    server.wait()


class Watched:
    """A coordinator whose nodes get one lease between them, and never answer it."""

    def __init__(self, cast: Cast, task: Task) -> None:
        self._pipe, self.pid = cast.start(run_watched, task)
        address = answer(self._pipe)
        self.hall, _ = cast.start(run_hall, wide_invite(cast.folder, address[1], 10_000), task)

    def holds(self, nodes: int) -> tuple[int, int, int]:
        """Resident KiB, threads and descriptors, once exactly so many nodes are in and garbage is collected."""
        done = threading.Event()
        while say(self._pipe, True) != nodes:
            done.wait(0.05)  # a node that has left is forgotten a moment later
        return resident_kib(self.pid), threads(self.pid), descriptors(self.pid)

    def end(self) -> None:
        """Let both processes end."""
        say(self.hall, "end")
        self._pipe.send(False)


def idle(nodes: int) -> None:
    task = Task(WIDTHS, leaf_rows=1, batches=1, leaves=1)
    with Cast() as cast:
        watched = Watched(cast, task)
        say(watched.hall, "join", 10)  # what the first nodes cost for all: imports, pools, gRPC's own threads
        before = watched.holds(10)
        say(watched.hall, "join", nodes)
        after = watched.holds(10 + nodes)
        say(watched.hall, "leave")
        left = watched.holds(0)
        watched.end()
    kib = (after[0] - before[0]) / nodes
    setup = (
        f"{nodes} joined nodes that hold no lease, TLS; RSS (anonymous) {before[0]:,} KiB with 10 nodes, "
        f"{after[0]:,} with {10 + nodes}, {left[0]:,} after all left; threads {before[1]}, {after[1]}, {left[1]}; "
        f"descriptors {before[2]}, {after[2]}, {left[2]}; theirs is the target"
    )
    report("coordinator_idle_node", kib, IDLE_TARGET_KIB, "KiB", False, setup)


def cycles(count: int) -> None:
    task = Task(WIDTHS, leaf_rows=1, batches=1, leaves=1)
    with Cast() as cast:
        watched = Watched(cast, task)
        say(watched.hall, "cycle", count // 10, 10)  # warm
        series = [watched.holds(0)]
        for _ in range(10):
            say(watched.hall, "cycle", count // 10, 10)
            series.append(watched.holds(0))
        watched.end()
    resident = [kib for kib, _, _ in series]
    slope = statistics.linear_regression(range(len(resident)), resident).slope / (count // 10)
    late = statistics.linear_regression(range(6), resident[5:]).slope / (count // 10)
    setup = (
        f"{count} nodes with a key each join over TLS and leave, 10 at a time, after {count // 10} to warm up; "
        f"RSS in KiB after each tenth: {resident}, {late:.2f} a node in the second half; "
        f"threads {series[0][1]} to {series[-1][1]}; descriptors {series[0][2]} to {series[-1][2]}; "
        "theirs is what is allowed: a node's key and name are remembered"
    )
    report("coordinator_cycle", slope, 1.0, "KiB a node", False, setup)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=50)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200, help="steps a turn")
    parser.add_argument("--nodes", type=int, default=200, help="idle nodes")
    parser.add_argument("--cycles", type=int, default=1000, help="nodes that come and go, in hundreds")
    given = parser.parse_args()
    leases(given.connections, given.turns, given.steps)
    idle(given.nodes)
    cycles(given.cycles)


if __name__ == "__main__":
    main()
