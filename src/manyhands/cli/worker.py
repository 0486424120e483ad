"""``manyhands worker``: computes a part of somebody's model until its boss lets it go. Needs no code of the model's."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from manyhands.cli import console

if TYPE_CHECKING:
    from manyhands.pipeline.bossline import BossLine

_ALL = "all"


def worker(
    invite: Annotated[
        str | None,
        typer.Argument(
            metavar="[INVITE | @FILE | -]",
            help="The line of the boss, a file that holds it, or - for standard input; without one: "
            "MANYHANDS_INVITE, or your boss here. MODEL_HOST and MODEL_PORT change its address.",
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="D|all", help="cpu, cuda, cuda:1, mps; all: a worker on each GPU.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="How the boss sees this machine.")] = None,
    patience: Annotated[
        float | None, typer.Option(metavar="H", min=0.0, help="Hours to wait for a boss that is gone.")
    ] = None,
) -> int:
    """Hold some layers of a model, and compute what the boss asks for, until it is done."""
    import socket

    from manyhands.clock import SystemClock
    from manyhands.pipeline.bossline import BossLine
    from manyhands.pipeline.worker import Worker
    from manyhands.settings import load

    line = sys.stdin.readline().strip() if invite == "-" else invite
    boss = BossLine(line)
    boss.invite()  # a damaged line ends it here, before anything heavy is loaded
    hours = load().network.patience_hours if patience is None else patience
    if device == _ALL and (devices := _devices()):
        return _one_each(boss, devices, hours)
    Worker(
        boss,
        None if device == _ALL else device,
        name or socket.gethostname(),
        patience_seconds=hours * 3600.0,
        clock=SystemClock(),
        say=console.tell,
    ).run()
    return 0


def _devices() -> list[str | None]:
    """Each GPU of this machine, where there is more than one."""
    import torch

    number = torch.cuda.device_count()
    return [f"cuda:{at}" for at in range(number)] if number > 1 else []


def _one_each(boss: BossLine, devices: list[str | None], patience_hours: float) -> int:
    """A worker process on each device; ends with them."""
    from manyhands.pipeline.localworkers import LocalWorkers

    workers = LocalWorkers()
    try:
        workers.start(str(boss.invite()), devices, patience_hours)
        return workers.wait()
    finally:
        workers.close()
