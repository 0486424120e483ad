"""How a loader meets its trainers, by its arguments and the settings: a door for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from manyhands.clock import Clock
from manyhands.errors import UsageError
from manyhands.fleet.dialling import Dialler
from manyhands.settings import Settings, checks, load
from manyhands.split.doors import DiallingDoor, Door, ListeningDoor
from manyhands.split.jobs import Mode
from manyhands.wire import Role
from manyhands.wire.address import join_address, parse_address
from manyhands.wire.known import read_invite

Trainers = str | Sequence[str]
"""One address, or those of several trainers that are the ranks of one job: a host, ``host:port``, or an invite."""

CALLS: Final[dict[Mode, str]] = {
    "training": "start_training()",
    "validation": 'start_service(mode="validation")',
    "inference": 'start_service(mode="inference")',
}
"""What the trainer runs for each mode."""


def addresses(given: Trainers) -> list[str]:
    """One or several, as a list. UsageError for an empty one."""
    found = [given] if isinstance(given, str) else list(given)
    if not found or not all(isinstance(address, str) and address.strip() for address in found):
        raise UsageError(f"gpu_host={given!r}: give the trainer's address, or a list of them")
    return found


def doors(
    given: Trainers | None, port: int, mode: Mode, invite: str | None, *, secure: bool, clock: Clock
) -> list[Door]:
    """A door to each trainer of a job. UsageError for an address that is none."""
    if given is None:
        raise UsageError("give gpu_host, the address of the trainer: only start_loading can listen instead")
    settings = load(split=True)
    return [
        dialling(address, port, CALLS[mode], invite, settings, secure=secure, clock=clock)
        for address in addresses(given)
    ]


def dialling(
    address: str, port: int, call: str, invite: str | None, settings: Settings, *, secure: bool, clock: Clock
) -> DiallingDoor:
    """A door to the trainer at `address`, which there runs `call`."""
    checks.whole("gpu_port", port, 1, 65535)
    network = settings.network
    if address.strip().startswith(("mh://", "@")):
        line = read_invite(address)
        dialler, shown = Dialler(address, None, secure=True), join_address(line.host, line.port)
    else:
        at = parse_address(address, port)
        dialler, shown = (
            Dialler(at, invite, secure=secure, role=Role.LOADER, comes_first=True),
            join_address(*at),
        )
    where = (
        f"the trainer at {shown}: run trainer.{call} there; where it cannot be reached from here, listen here "
        f"with start_loading(listen_port={port}) and dial from there with start_training(cpu_host, cpu_port={port})"
    )
    return DiallingDoor(dialler, where, clock, network.patience_hours * 3600.0, network.retry_attempts)


def listening(port: int, *, secure: bool, clock: Clock) -> ListeningDoor:
    """A door that a trainer comes to."""

    def advice(host: str, port: int) -> str:
        return (
            f"a trainer: run trainer.start_training(cpu_host={host!r}, cpu_port={port}) on the machine with the GPU; "
            "where this one cannot be reached from there, let the trainer listen and call start_loading(gpu_host=...)"
        )

    return ListeningDoor(Role.TRAINER, host=None, port=port, secure=secure, clock=clock, advice=advice)


def announce(door: ListeningDoor) -> None:
    """Print what the trainer needs to dial. On stdout: it is this command's result so far."""
    if door.invite is None:
        return
    host, port = door.address
    print(  # noqa: T201 - the line to paste
        f"Where the GPU is, set this and run your trainer, which calls start_training(cpu_host={host!r}, "
        f"cpu_port={port}):\n\n    export MANYHANDS_INVITE={door.invite}\n",
        flush=True,
    )
