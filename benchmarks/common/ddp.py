"""The other side: two processes of DistributedDataParallel over Gloo, on the same batches, in turns."""

from __future__ import annotations

import itertools
import os
from multiprocessing.connection import Connection as Pipe

from common.cast import Cast, answer, prepare_process
from common.links import DEVICE
from common.process import processor_seconds
from common.task import Task
from common.turns import Turns

Hosts = tuple[str | None, str | None]


def run_rank(pipe: Pipe, folder: str, task: Task, rank: int, device: str | None) -> None:
    """One of two DDP processes; it takes its half of the same batches. `device` is its network device."""
    prepare_process(folder)
    if device is not None:
        os.environ["GLOO_SOCKET_IFNAME"] = device
    from torch import distributed, nn

    distributed.init_process_group("gloo", init_method=f"file://{folder}/gloo", rank=rank, world_size=2)
    model = nn.parallel.DistributedDataParallel(task.model())
    optimizer, criterion = task.build_optimizer(model.parameters()), task.criterion()
    inputs, targets = (rows.view(-1, task.leaf_rows, *rows.shape[1:]) for rows in task.rows())
    halves = itertools.cycle([(inputs[i], targets[i]) for i in range(rank, len(inputs), 2)])
    turns = Turns(pipe)
    pipe.send("ready")
    turns.wait()
    while not turns.is_over:
        batch, wanted = next(halves)
        optimizer.zero_grad()
        loss = criterion(model(batch), wanted)
        loss.backward()
        optimizer.step()
        turns.step(loss.item())
    distributed.destroy_process_group()


class Ranks:
    """Two DDP processes, here or on two hosts of `common.links`."""

    def __init__(self, cast: Cast, task: Task, hosts: Hosts = (None, None)) -> None:
        ranks = [
            cast.start(run_rank, task, rank, None if host is None else DEVICE, host=host)
            for rank, host in enumerate(hosts)
        ]
        self._pipes = [pipe for pipe, _ in ranks]
        self._pids = [pid for _, pid in ranks]
        for pipe in self._pipes:
            answer(pipe)

    def turn(self, steps: int) -> tuple[list[float], float]:
        """Milliseconds of each step of a turn, and the loss at its end: the mean of both halves."""
        for pipe in self._pipes:
            pipe.send(steps)
        (gaps, loss), (_, other) = (answer(pipe) for pipe in self._pipes)
        return gaps, (loss + other) / 2

    def processor_seconds(self) -> float:
        """Processor time of both processes so far."""
        return sum(processor_seconds(pid) for pid in self._pids)

    def end(self) -> None:
        """Let the processes end."""
        for pipe in self._pipes:
            pipe.send(0)
