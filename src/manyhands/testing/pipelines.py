"""A pipeline against one process, for a function that makes one: what ``manyhands verify`` runs for it.

The function takes the workers and returns the boss, the loss and the batches; it may be a coroutine's. The workers
are processes of this machine.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from manyhands.errors import UsageError
from manyhands.pipeline.alone import alone
from manyhands.pipeline.boss import BossMan
from manyhands.pipeline.crew import Crew
from manyhands.training.objective import Objective

WORKERS = "workers"
"""The argument by which such a function is known."""

Batch = tuple[Tensor, Tensor, Mapping[str, Tensor]]


def makes_pipeline(target: Any) -> bool:
    """Whether `target` is a function of workers."""
    try:
        return inspect.isroutine(target) and WORKERS in inspect.signature(target).parameters
    except ValueError:  # a function of C's own has no signature
        return False


@dataclass(frozen=True)
class Sides:
    """What workers and one process made of the same steps: parameters and buffers by name."""

    steps: int
    devices: frozenset[str]
    workers: Mapping[str, Tensor]
    alone: Mapping[str, Tensor]


def train_both(target: Any, num_workers: int, steps: int) -> Sides:
    """The first `steps` steps on `num_workers` workers, and in this process. Raises what the run raises."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # workers compute with as many as the boss
    try:
        return asyncio.run(_train_both(target, num_workers, steps))
    finally:
        torch.set_num_threads(before)


async def _train_both(target: Any, num_workers: int, steps: int) -> Sides:
    crew = await BossMan.setup_host(num_workers, port=0, local=True)
    try:
        return await train_on(crew, target, steps)
    finally:
        await asyncio.to_thread(crew.close)


async def train_on(crew: Crew, target: Any, steps: int) -> Sides:
    """The same on workers that are here. UsageError where `target` makes no pipeline."""
    boss, loss_fn, batches = await _made(target, crew)
    chosen = list(islice(batches, steps))
    await boss.distribute_model()
    with torch.no_grad():  # the first batch places a module
        await boss.forward(chosen[0][0], chosen[0][2])
    one, optimizer = await alone(boss)
    objective = Objective(loss_fn)
    for x, y, extra in chosen:
        await boss.train_batch(x, y, loss_fn, micro_batches=1, schedule="naive", extra=extra)
        one.train_batch(optimizer, x, y, objective, extra=extra)
    weights = await boss.state_dict()
    here = one.tensors()
    devices = frozenset(member.hello.device for member in crew)
    return Sides(len(chosen), devices, {name: weights[name] for name in here}, here)


async def _made(target: Any, crew: Crew) -> tuple[BossMan, nn.Module, Iterator[Batch]]:
    found = target(crew)
    if inspect.isawaitable(found):
        found = await found
    if not (isinstance(found, tuple) and len(found) == 3 and isinstance(found[0], BossMan)):
        raise UsageError(
            f"target: a function of workers must return (boss, loss, batches), and this one gave {found!r:.80}"
        )
    boss, loss_fn, batches = found
    if not isinstance(loss_fn, nn.Module):
        raise UsageError(
            f"target: the loss must be one of torch.nn's, such as nn.MSELoss(), not {loss_fn!r:.60}"
        )
    return boss, loss_fn, _batches(batches)


def _batches(given: Any) -> Iterator[Batch]:
    none_yet = True
    for batch in given:
        if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
            raise UsageError(f"target: a batch is (x, y) or (x, y, extra), not {batch!r:.80}")
        none_yet = False
        yield batch[0], batch[1], batch[2] if len(batch) == 3 else {}
    if none_yet:
        raise UsageError("target: there are no batches to train on")
