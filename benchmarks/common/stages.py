"""One model on three workers, two ways: our pipeline over TLS, and torch.distributed.pipelining over plain Gloo.

The same layers, cuts, weights, batches, micro-batches, loss and plain SGD. The other side's ranks hold the batches;
our boss sends them with each step. Nobody waits for anybody but where a step needs it: a rank begins its next step when
its own part of the last one is over, our boss when all workers have answered.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from multiprocessing.connection import Connection as Pipe
from typing import Any

import torch
from torch import Tensor, nn

from common.cast import Cast, answer, prepare_process
from common.lines import spread
from common.process import processor_seconds
from common.turns import Turns

WORKERS = 3
CUTS = (4, 6)
BATCHES = 8
LEARNING_RATE = 0.01


@dataclass(frozen=True)
class Rival:
    """How torch runs the same steps."""

    schedule: str
    """A class of torch.distributed.pipelining."""
    micro_batches: int


@dataclass(frozen=True)
class Problem:
    """A regression from one number to one over three layers of `width` x `width`, one a worker; and how we run it."""

    width: int
    rows: int
    micro_batches: int
    schedule: str

    def model(self) -> nn.Sequential:
        """The same weights in each process."""
        torch.manual_seed(1)
        layers: list[nn.Module] = [nn.Linear(1, self.width), nn.ReLU()]
        for _ in range(WORKERS):
            layers += [nn.Linear(self.width, self.width), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(self.width, 1))

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """The batch of a step: always the same one."""
        x = torch.rand(self.rows, 1, generator=torch.Generator().manual_seed(step % BATCHES)) * 6
        return x, torch.sin(x)


def run_boss(pipe: Pipe, folder: str, problem: Problem) -> None:
    """A boss and its workers, three processes of this machine; tells the workers' pids first."""
    prepare_process(folder)
    import asyncio

    asyncio.run(_drive(pipe, problem))


async def _drive(pipe: Pipe, problem: Problem) -> None:
    from manyhands import BossMan

    crew = await BossMan.setup_host(WORKERS, port=0, local=True, timeout=120)
    boss = BossMan(crew, problem.model(), cuts=list(CUTS), snapshot_every=10**9)
    await boss.send_optimizer(torch.optim.SGD, {"lr": LEARNING_RATE})
    batches = [problem.batch(step) for step in range(BATCHES)]
    with torch.no_grad():
        await boss.forward(batches[0][0], {})  # a module is cut at its first batch
    pipe.send([member.hello.pid for member in crew])
    turns, step = Turns(pipe), 0
    turns.wait()
    while not turns.is_over:
        x, y = batches[step % BATCHES]
        loss = await boss.train_batch(
            x, y, nn.MSELoss(), micro_batches=problem.micro_batches, schedule=problem.schedule
        )
        step += 1
        turns.step(loss)
    await boss.close()


def run_rank(pipe: Pipe, folder: str, problem: Problem, rival: Rival, rank: int) -> None:
    """One stage of torch's pipeline."""
    prepare_process(folder)
    from torch import distributed
    from torch.distributed import pipelining

    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/gloo-{rival.micro_batches}", rank=rank, world_size=WORKERS
    )
    whole = problem.model()
    (start, stop) = list(pairwise((0, *CUTS, len(whole))))[rank]
    module = whole[start:stop]
    optimizer = torch.optim.SGD(module.parameters(), lr=LEARNING_RATE)
    stage = pipelining.PipelineStage(module, rank, WORKERS, torch.device("cpu"))
    kind = getattr(pipelining, rival.schedule)
    schedule = kind(stage, rival.micro_batches, loss_fn=nn.MSELoss())
    batches = [problem.batch(step) for step in range(BATCHES)]
    turns, step = Turns(pipe), 0
    pipe.send("ready")
    turns.wait()
    while not turns.is_over:
        x, y = batches[step % BATCHES]
        losses: list[Tensor] = []
        optimizer.zero_grad()
        if rank == 0:
            schedule.step(x)
        elif rank == WORKERS - 1:
            schedule.step(target=y, losses=losses)
        else:
            schedule.step()
        optimizer.step()
        step += 1
        turns.step(float(torch.stack(losses).mean()) if losses else 0.0)
    distributed.destroy_process_group()


@dataclass
class Side:
    """Milliseconds of each step, and processor milliseconds a step of all its processes."""

    milliseconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    loss: float = 0.0

    def __str__(self) -> str:
        return f"{spread(self.milliseconds)}, processor time {statistics.median(self.processor):.2f} a step"


class Ours:
    """A boss, three workers."""

    def __init__(self, cast: Cast, problem: Problem) -> None:
        self._pipe, pid = cast.start(run_boss, problem)
        self._pids = [pid, *answer(self._pipe)]

    def turn(self, steps: int) -> tuple[list[float], float]:
        """Milliseconds of each step, and the loss of the last."""
        self._pipe.send(steps)
        gaps, loss = answer(self._pipe)
        return gaps, loss

    def processor_seconds(self) -> float:
        """Of all its processes so far."""
        return sum(processor_seconds(pid) for pid in self._pids)

    def end(self) -> None:
        """Let the processes end."""
        self._pipe.send(0)


class Theirs:
    """Three ranks."""

    def __init__(self, cast: Cast, problem: Problem, rival: Rival) -> None:
        ranks = [cast.start(run_rank, problem, rival, rank) for rank in range(WORKERS)]
        self._pipes = [pipe for pipe, _ in ranks]
        self._pids = [pid for _, pid in ranks]
        for pipe in self._pipes:
            answer(pipe)

    def turn(self, steps: int) -> tuple[list[float], float]:
        """Milliseconds of each step of the first rank, which ends a step last, and the last rank's loss."""
        for pipe in self._pipes:
            pipe.send(steps)
        told = [answer(pipe) for pipe in self._pipes]
        return told[0][0], told[-1][1]

    def processor_seconds(self) -> float:
        """Of all its processes so far."""
        return sum(processor_seconds(pid) for pid in self._pids)

    def end(self) -> None:
        """Let the processes end."""
        for pipe in self._pipes:
            pipe.send(0)


def compare(
    problem: Problem, rivals: Sequence[Rival], turns: int, steps: int, warm_steps: int
) -> tuple[Side, list[Side]]:
    """Our side and each rival's over `turns` turns of `steps` steps each, after `warm_steps` in each turn that do not
    count.

    RuntimeError where they did not train the same.
    """
    ours, theirs = Side(), [Side() for _ in rivals]
    with Cast() as cast:
        sides: list[tuple[Side, Any]] = [(ours, Ours(cast, problem))]
        sides += [(side, Theirs(cast, problem, rival)) for side, rival in zip(theirs, rivals, strict=True)]
        for turn in range(turns):
            for side, runner in sides if turn % 2 else reversed(sides):
                runner.turn(warm_steps)
                before = runner.processor_seconds()
                gaps, side.loss = runner.turn(steps)
                side.processor.append((runner.processor_seconds() - before) / steps * 1e3)
                side.milliseconds += gaps
            for side in theirs:
                if abs(ours.loss - side.loss) > 0.01 * abs(side.loss) + 1e-4:
                    raise RuntimeError(
                        f"turn {turn}: our loss is {ours.loss}, torch's {side.loss}: not the same"
                    )
        for _, runner in sides:
            runner.end()
    return ours, theirs
