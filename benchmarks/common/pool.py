"""A pool for benchmarks: a coordinator and its nodes, each a process, trained in turns."""

from __future__ import annotations

import time
from collections.abc import Sequence
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

from common.cast import Cast, answer, prepare_process
from common.process import processor_seconds
from common.task import Task
from common.turns import Turns

FOREVER = 1_000_000


def run_coordinator(pipe: Pipe, folder: str, task: Task, collects: bool, options: dict[str, Any]) -> None:
    """A CentralServer that pauses between turns."""
    prepare_process(folder)
    from manyhands.pool.server import CentralServer

    turns = Turns(pipe, collects=collects)

    def on_step(*, loss: float, **_: Any) -> None:
        turns.step(loss)
        if turns.is_over:
            server.stop()

    server = CentralServer(
        task.model(),
        task.dataset(),
        batch_size=task.batch_rows,
        micro_batches=task.leaves,
        port=0,
        shuffle=False,
        epochs=FOREVER,
        criterion=task.criterion(),
        optimizer=task.build_optimizer,
        checkpoint_dir=Path(folder) / "run",
        checkpoint_interval=1e6,
        on_step=on_step,
        **options,
    )
    server.start(block=False)
    pipe.send((server.invite, server.address))
    turns.wait()
    server.wait()


def run_node(
    pipe: Pipe, folder: str, invite: str, address: tuple[str, int], task: Task, pause_seconds: float = 0.0
) -> None:
    """A TrainingNode that counts its leaves, and what it sent and received of each lease.

    ``pause_seconds`` makes it slow: so long it sleeps in each leaf's forward pass.
    """
    prepare_process(folder)
    from manyhands.pool.node import TrainingNode

    leaves = 0
    leases: list[tuple[int, int]] = []

    def on_lease(*, compressed_size: int, received_bytes: int, **_: Any) -> None:
        leases.append((compressed_size, received_bytes))

    def on_leaf(loss: float, batch_id: int) -> None:
        nonlocal leaves
        leaves += 1
        if leaves == 1:
            pipe.send("takes part")

    model = task.model()
    if pause_seconds:
        model.register_forward_pre_hook(lambda *_: time.sleep(pause_seconds))
    TrainingNode(model, address, invite=invite).train(on_leaf, on_lease)
    pipe.send((leaves, leases))


class Coordinator:
    """The process of a coordinator; `collects` is that of Turns, `options` are those of CentralServer.

    ``host`` is a namespace of `common.links` that it runs in, with its address in ``options["ip"]``.
    """

    def __init__(
        self, cast: Cast, task: Task, *, collects: bool = False, host: str | None = None, **options: Any
    ) -> None:
        self._pipe, self.pid = cast.start(run_coordinator, task, collects, options, host=host)
        self.invite, self.address = answer(self._pipe)
        self._pipe.send(
            1
        )  # the first step may come as soon as there is a node: its word must be there before
        self._is_first = True

    def turn(self, steps: int) -> tuple[list[float], float]:
        """Milliseconds of each step of a turn, and the loss at its end."""
        if self._is_first:
            answer(self._pipe)
            self._is_first = False
        self._pipe.send(steps)
        gaps, loss = answer(self._pipe)
        return gaps, loss

    def finish(self) -> None:
        """Let the run end; it must be between two turns."""
        self._pipe.send(0)


class Pool(Coordinator):
    """A coordinator and its nodes, here or on hosts of `common.links`; `pauses` are the nodes' of `run_node`."""

    def __init__(
        self,
        cast: Cast,
        task: Task,
        *,
        collects: bool = False,
        host: str | None = None,
        node_hosts: Sequence[str | None] = (None, None),
        pauses: Sequence[float] = (0.0, 0.0),
        **options: Any,
    ) -> None:
        super().__init__(cast, task, collects=collects, host=host, **options)
        nodes = [
            cast.start(run_node, self.invite, self.address, task, pause, host=node_host)
            for node_host, pause in zip(node_hosts, pauses, strict=True)
        ]
        self._nodes = [pipe for pipe, _ in nodes]
        self._pids = [self.pid, *(pid for _, pid in nodes)]
        self.traffic: list[tuple[int, int]] = []
        """At the end, of every lease: bytes of partial sums sent, bytes received with and since the one before."""

    def warm_up(self, steps: int) -> int:
        """Train until both nodes take part, and `steps` more; how many steps that were."""
        done = 1
        while not all(node.poll() for node in self._nodes):
            self.turn(1)
            done += 1
        self.turn(steps)
        return done + steps

    def processor_seconds(self) -> float:
        """Processor time of all its processes so far."""
        return sum(processor_seconds(pid) for pid in self._pids)

    def end(self) -> list[int]:
        """Let the run end; the number of leaves that each node computed."""
        self.finish()
        for node in self._nodes:
            answer(node)
        told = [answer(node) for node in self._nodes]
        self.traffic = [lease for _, leases in told for lease in leases]
        return [leaves for leaves, _ in told]
