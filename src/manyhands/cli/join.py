"""``manyhands join``: lend this machine to a run until it ends. Needs no code of the run's; loads no torch here."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from manyhands.cli import console
from manyhands.cli.owner import usual_port
from manyhands.errors import Refused, UsageError

if TYPE_CHECKING:
    from manyhands.clock import Clock
    from manyhands.clusters.plan import Order, Wish
    from manyhands.fleet.dialling import Dialler
    from manyhands.pool.lending.given import Given
    from manyhands.wire import Invite

_LINE_SECONDS = 30.0


class Engine(StrEnum):
    """What places nodes on a cluster's machines."""

    RAY = "ray"


def join(
    invite: Annotated[
        str | None,
        typer.Argument(
            metavar="[INVITE | @FILE | -]",
            help="The line to join with, a file that holds it, or - for standard input; without one: "
            "MANYHANDS_INVITE, your coordinator here, or a question.",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="How the run's owner sees this machine.")] = None,
    device: Annotated[
        str | None, typer.Option(metavar="D|all", help="cpu, cuda, cuda:1, mps; all: each GPU.")
    ] = None,
    cpus: Annotated[int | None, typer.Option(min=1, help="How many processors to lend.")] = None,
    nproc: Annotated[
        int, typer.Option(min=1, max=256, help="Compute in N processes that are one node to the run.")
    ] = 1,
    when_idle: Annotated[
        bool, typer.Option("--when-idle", help="Compute only while you need this machine for nothing else.")
    ] = False,
    patience: Annotated[
        float | None, typer.Option(metavar="H", min=0.0, help="Hours to wait for a coordinator that is gone.")
    ] = None,
    on: Annotated[
        Engine | None, typer.Option(help="Lend a cluster's machines, by its own engine, and not this one.")
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(min=1, help="With --on: how many nodes; without it as many as there is room for."),
    ] = None,
    address: Annotated[
        str | None, typer.Option(metavar="A", help="With --on: where the cluster is; without it: here.")
    ] = None,
) -> int:
    """Lend this machine until the run ends: low priority, and nothing of the run's is code here."""
    import socket

    from manyhands.clock import SystemClock
    from manyhands.clusters.plan import Order, Wish
    from manyhands.pool.lending.agent import Agent
    from manyhands.pool.lending.given import describe
    from manyhands.pool.lending.lanes import Lending
    from manyhands.pool.lending.limits import be_nice
    from manyhands.settings import load

    hours = load().network.patience_hours if patience is None else patience
    if on is not None:
        return _join_on_ray(
            invite,
            Wish(name or on.value, device, nproc, hours * 3600.0, console.is_verbose()),
            Order(count, cpus, address),
        )
    if count is not None or address is not None:
        raise UsageError(
            "--count and --address are about a cluster: say which engine places nodes there, --on ray"
        )
    quiet_seconds = load().advanced.idle_seconds if when_idle else None
    be_nice()
    clock = SystemClock()
    line = _Line(clock)
    agent = Agent(
        Lending(name or socket.gethostname(), device, cpus, console.is_verbose(), nproc, quiet_seconds),
        _dialler_of(invite),
        hours * 3600.0,
        clock=clock,
        show=line,
        say=console.tell,
    )
    try:
        agent.run()
    finally:
        line.end(agent.given)
    console.show(f"the run is over: {describe(agent.given)}")
    return 0


def _dialler_of(given: str | None) -> Callable[[], Dialler]:
    """What makes a dialler for each lane. UsageError for a damaged line, Refused where there is none at all.

    A file is read again at each dial, and so is what a coordinator here leaves for its user.
    """
    from manyhands.fleet.dialling import DEFAULT_ADDRESS, Dialler
    from manyhands.settings import load
    from manyhands.wire import read_invite

    line = _line_of(given)
    if line is not None:
        read_invite(line)
        return lambda: Dialler(DEFAULT_ADDRESS, line, secure=True)
    if load().invite is not None:
        return lambda: Dialler(DEFAULT_ADDRESS, None, secure=True)
    return lambda: Dialler(("localhost", usual_port()), None, secure=True)


def _line_of(given: str | None) -> str | None:
    """The line that was given: as it is, from standard input, or by an answer where nothing else is to be found;
    None where the settings or a coordinator here have one. Refused where there is none at all.
    """
    from manyhands.settings import load, state_dir
    from manyhands.wire import find_invite

    if given == "-":
        return sys.stdin.readline().strip()
    if given is not None or load().invite is not None:
        return given
    try:
        find_invite(None, None, state_dir(), usual_port())
    except Refused:
        if not sys.stdin.isatty():
            raise
        return getpass.getpass("the line to join with (mh://...): ")
    return None


def _invite_of(given: str | None) -> Invite:
    """The invite itself, for nodes that start elsewhere."""
    from manyhands.settings import load, state_dir
    from manyhands.wire import find_invite

    secret = load().invite
    shown = secret.get_secret_value() if secret is not None else None
    return find_invite(_line_of(given), shown, state_dir(), usual_port())


def _join_on_ray(given: str | None, wish: Wish, order: Order) -> int:
    """Have a Ray cluster lend its machines, until the run ends."""
    from manyhands.clock import SystemClock
    from manyhands.clusters.rayjoin import RayJoin
    from manyhands.pool.lending.given import describe

    clock = SystemClock()
    line = _Line(clock)
    joined = RayJoin(order, wish, _invite_of(given), clock=clock, show=line, say=console.tell)
    try:
        joined.run()
    finally:
        line.end(joined.given)
    console.show(f"the run is over: {describe(joined.given)}")
    return 0


class _Line:
    """What was given so far: one line that is written over on a terminal, one now and then elsewhere."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._shown_at = clock.monotonic()

    def __call__(self, given: Given) -> None:
        """Show it, if it is time."""
        from manyhands.pool.lending.given import describe

        now = self._clock.monotonic()
        if console.is_quiet() or not given.leaves:
            return
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{describe(given)}")
            sys.stderr.flush()
        elif now - self._shown_at >= _LINE_SECONDS:
            self._shown_at = now
            console.tell(describe(given))

    def end(self, given: Given) -> None:
        """Leave the last figures on the screen, however it ended."""
        from manyhands.pool.lending.given import describe

        if given.leaves:
            start = "\r\x1b[K" if sys.stderr.isatty() and not console.is_quiet() else ""
            console.tell(f"{start}{describe(given)}")
