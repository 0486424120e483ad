"""``manyhands join``: lend this machine to a run until it ends. Needs no code of the run's; loads no torch here."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from manyhands.cli import console
from manyhands.cli.owner import usual_port
from manyhands.errors import Refused, UsageError

if TYPE_CHECKING:
    from manyhands.clock import Clock
    from manyhands.pool.dialling import Dialler
    from manyhands.pool.lending.given import Given

_LINE_SECONDS = 30.0


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
    nproc: Annotated[int | None, typer.Option(hidden=True)] = None,
    patience: Annotated[
        float | None, typer.Option(metavar="H", min=0.0, help="Hours to wait for a coordinator that is gone.")
    ] = None,
) -> int:
    """Lend this machine until the run ends: low priority, and nothing of the run's is code here."""
    import socket

    from manyhands.clock import SystemClock
    from manyhands.pool.lending.agent import Agent
    from manyhands.pool.lending.given import describe
    from manyhands.pool.lending.lanes import Lending
    from manyhands.pool.lending.limits import be_nice
    from manyhands.settings import load

    if nproc is not None:
        raise UsageError(
            "--nproc is not built yet: --cpus N lends N processors as several lanes, --device all each GPU"
        )
    be_nice()
    hours = load().network.patience_hours if patience is None else patience
    clock = SystemClock()
    line = _Line(clock)
    agent = Agent(
        Lending(name or socket.gethostname(), device, cpus, console.is_verbose()),
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
    from manyhands.pool.dialling import DEFAULT_ADDRESS, Dialler
    from manyhands.settings import load, state_dir
    from manyhands.wire import find_invite, read_invite

    if given == "-":
        given = sys.stdin.readline().strip()
    if given is not None:
        read_invite(given)
        return lambda: Dialler(DEFAULT_ADDRESS, given, secure=True)
    if load().invite is not None:
        return lambda: Dialler(DEFAULT_ADDRESS, None, secure=True)
    port = usual_port()
    try:
        find_invite(None, None, state_dir(), port)
    except Refused:
        if not sys.stdin.isatty():
            raise
        line = getpass.getpass("the line to join with (mh://...): ")
        read_invite(line)
        return lambda: Dialler(DEFAULT_ADDRESS, line, secure=True)
    return lambda: Dialler(("localhost", port), None, secure=True)


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
