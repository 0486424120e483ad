"""Two sides that take turns: a pool of a coordinator and two nodes, and DDP over Gloo with two processes.

All five processes stay alive; a side computes while the other waits for its turn, so both meet the same
machine. A turn is a number of optimizer steps; each step's end is stamped where its weights are final.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection as Pipe
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from common.lines import spread
from common.process import processor_seconds
from common.task import Task

SPAWN = multiprocessing.get_context("spawn")
ANSWER_SECONDS = 300.0


def prepare_process(folder: str) -> None:
    """What every process of a benchmark begins with: a state folder of its own, one thread, a quiet stdout."""
    os.environ["MANYHANDS_STATE_DIR"] = folder
    torch.set_num_threads(1)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    log = os.open(f"{folder}/log-{os.getpid()}.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)


class Turns:
    """A callback that stamps each step and, after each turn, waits for the word to go on.

    The word is a number of steps; 0 is the end.
    """

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._steps = 0
        self._stamps: list[float] = []
        self.is_over = False

    def wait(self) -> None:
        """Block until it is this side's turn."""
        self._steps = self._pipe.recv()
        self.is_over = self._steps == 0
        self._stamps = [time.perf_counter()]

    def step(self, loss: float) -> None:
        """One step is committed."""
        self._stamps.append(time.perf_counter())
        if len(self._stamps) > self._steps:
            gaps = [b - a for a, b in zip(self._stamps, self._stamps[1:], strict=False)]
            self._pipe.send(([gap * 1e3 for gap in gaps], loss))
            self.wait()


def run_coordinator(pipe: Pipe, folder: str, task: Task) -> None:
    """A CentralServer that pauses between turns."""
    prepare_process(folder)
    from manyhands.pool.server import CentralServer

    turns = Turns(pipe)

    def on_step(*, loss: float, **_: Any) -> None:
        turns.step(loss)
        if turns.is_over:
            server.stop()

    server = CentralServer(
        task.model(),
        task.dataset(),
        batch_size=task.batch_rows,
        micro_batches=2,
        port=0,
        shuffle=False,
        epochs=1_000_000,
        optimizer=task.build_optimizer,
        checkpoint_dir=Path(folder) / "run",
        checkpoint_interval=1e6,
        on_step=on_step,
    )
    server.start(block=False)
    pipe.send((server.invite, server.address))
    turns.wait()
    server.wait()


def run_node(pipe: Pipe, folder: str, invite: str, address: tuple[str, int], task: Task) -> None:
    """A TrainingNode that counts its leaves."""
    prepare_process(folder)
    from manyhands.pool.node import TrainingNode

    leaves = 0

    def on_leaf(loss: float, batch_id: int) -> None:
        nonlocal leaves
        leaves += 1
        if leaves == 1:
            pipe.send("takes part")

    TrainingNode(task.model(), address, invite=invite).train(loss_callback=on_leaf)
    pipe.send(leaves)


def run_rank(pipe: Pipe, folder: str, task: Task, rank: int) -> None:
    """One of two DDP processes; it takes its half of the same batches."""
    prepare_process(folder)
    from torch import distributed, nn

    distributed.init_process_group("gloo", init_method=f"file://{folder}/gloo", rank=rank, world_size=2)
    model = nn.parallel.DistributedDataParallel(task.model())
    optimizer = task.build_optimizer(model.parameters())
    inputs, targets = (rows.view(-1, task.leaf_rows, *rows.shape[1:]) for rows in task.rows())
    halves = itertools.cycle([(inputs[i], targets[i]) for i in range(rank, len(inputs), 2)])
    turns = Turns(pipe)
    pipe.send("ready")
    turns.wait()
    while not turns.is_over:
        batch, wanted = next(halves)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(batch), wanted)
        loss.backward()
        optimizer.step()
        turns.step(loss.item())
    distributed.destroy_process_group()


class Rivals:
    """Both sides, started; a context manager that leaves no process behind."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._processes: list[BaseProcess] = []
        self._scratch = tempfile.TemporaryDirectory(prefix="manyhands-bench-")
        self._pool: Pipe
        self._nodes: list[Pipe] = []
        self._ranks: list[Pipe] = []

    def __enter__(self) -> Rivals:
        try:
            self._open()
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def _open(self) -> None:
        folder, task = self._scratch.name, self._task
        self._ranks = [self._start(run_rank, folder, task, rank) for rank in range(2)]
        self._pool = self._start(run_coordinator, folder, task)
        invite, address = answer(self._pool)
        self._nodes = [self._start(run_node, folder, invite, address, task) for _ in range(2)]
        for rank in self._ranks:
            answer(rank)

    def _start(self, target: Any, *arguments: Any) -> Pipe:
        here, there = SPAWN.Pipe()
        process = SPAWN.Process(target=target, args=(there, *arguments), daemon=True)
        process.start()
        there.close()
        self._processes.append(process)
        return here

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            if error is not None:
                process.terminate()
            process.join(20)
            if process.is_alive():
                process.kill()
                process.join()
        if error is not None:
            for log in Path(self._scratch.name).glob("log-*"):
                sys.stderr.write(log.read_text())
        self._scratch.cleanup()

    def warm_up(self, steps: int) -> None:
        """Train on both sides until both nodes take part, and `steps` more."""
        done = 0
        while not all(node.poll() for node in self._nodes):
            self.pool_turn(1)
            done += 1
        self.pool_turn(steps)
        self.ddp_turn(done + steps)

    def pool_turn(self, steps: int) -> tuple[list[float], float]:
        """Milliseconds of each step of a turn, and the loss at its end."""
        self._pool.send(steps)
        gaps, loss = answer(self._pool)
        return gaps, loss

    def ddp_turn(self, steps: int) -> tuple[list[float], float]:
        """The same for DDP; the loss is the mean of both halves."""
        for rank in self._ranks:
            rank.send(steps)
        (gaps, loss), (_, other) = (answer(rank) for rank in self._ranks)
        return gaps, (loss + other) / 2

    def processor_seconds(self) -> float:
        """Processor time of all processes so far, both sides (one waits while the other works)."""
        return sum(processor_seconds(process.pid) for process in self._processes)

    def finish(self) -> list[int]:
        """Let the processes end; the number of leaves that each node computed."""
        for pipe in (self._pool, *self._ranks):
            pipe.send(0)
        for node in self._nodes:
            answer(node)
        return [answer(node) for node in self._nodes]


@dataclass
class Side:
    """What one side took: milliseconds of each step, and processor milliseconds a step, all its processes."""

    milliseconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{spread(self.milliseconds)}, processor time {statistics.median(self.processor):.2f} a step"


def answer(pipe: Pipe) -> Any:
    """What a process says; RuntimeError where it says nothing for too long."""
    if not pipe.poll(ANSWER_SECONDS):
        raise RuntimeError(f"a benchmark process gave no answer for {ANSWER_SECONDS:.0f} s")
    return pipe.recv()


def compare(task: Task, turns: int, steps: int, warm_steps: int) -> tuple[Side, Side]:
    """The pool and DDP over `turns` turns of `steps` steps each.

    The first `warm_steps` of a turn are left out: a side that waited has cold caches. RuntimeError where the
    two sides did not train the same, or one node did most of the work.
    """
    pool, ddp = Side(), Side()
    with Rivals(task) as rivals:
        rivals.warm_up(warm_steps)
        for _ in range(turns):
            before = rivals.processor_seconds()
            ours, our_loss = rivals.pool_turn(steps)
            between = rivals.processor_seconds()
            theirs, their_loss = rivals.ddp_turn(steps)
            after = rivals.processor_seconds()
            if abs(our_loss - their_loss) > 0.05 * abs(their_loss) + 0.02:
                raise RuntimeError(
                    f"the pool's loss is {our_loss}, DDP's {their_loss}: not the same training"
                )
            pool.milliseconds += ours[warm_steps:]
            ddp.milliseconds += theirs[warm_steps:]
            pool.processor.append((between - before) / steps * 1e3)
            ddp.processor.append((after - between) / steps * 1e3)
        leaves = rivals.finish()
        if min(leaves) < 0.6 * turns * steps:
            raise RuntimeError(f"the nodes computed {leaves} leaves: not shared work")
    return pool, ddp
