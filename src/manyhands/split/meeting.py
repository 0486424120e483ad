"""How a trainer meets its loaders, by its arguments and the settings: the door, its bounds, and the line to paste."""

from __future__ import annotations

from contextlib import AbstractContextManager

from manyhands.clock import Clock
from manyhands.fleet.dialling import Dialler
from manyhands.observe.logfile import DEFAULT_FILE, logging_to
from manyhands.observe.waiting import tell
from manyhands.settings import Settings
from manyhands.split.credits import MOST_WINDOW_BYTES
from manyhands.split.doors import DiallingDoor, ListeningDoor
from manyhands.split.jobs import Mode
from manyhands.split.seats import Bounds
from manyhands.wire import Role
from manyhands.wire.address import join_address

CALLS: dict[Mode, str] = {
    "training": "start_loading",
    "validation": "run_validation",
    "inference": "run_inference",
}
"""What a loader calls for each mode."""


def listening(
    mode: Mode, host: str | None, port: int, *, secure: bool, cpu_host: str | None, clock: Clock
) -> ListeningDoor:
    """A door that loaders come to."""

    def advice(at: str, port: int) -> str:
        who = f"a loader on {cpu_host}" if cpu_host else "a loader"
        return f"{who}: run loader.{CALLS[mode]}(gpu_host={at!r}, gpu_port={port}) where the data is"

    return ListeningDoor(Role.LOADER, host=host, port=port, secure=secure, clock=clock, advice=advice)


def dialling(
    host: str, port: int, invite: str | None, settings: Settings, *, secure: bool, clock: Clock
) -> DiallingDoor:
    """A door to a loader that listens."""
    where = f"the loader at {join_address(host, port)}: run loader.start_loading(listen_port={port}) there"
    dialler = Dialler((host, port), invite, secure=secure, role=Role.TRAINER, comes_first=True)
    return DiallingDoor(
        dialler, where, clock, settings.network.patience_hours * 3600.0, settings.network.retry_attempts
    )


def bounds_of(settings: Settings) -> Bounds:
    """What the settings allow in flight; what they ask in vain is said."""
    if not settings.data.flow_control:
        tell(
            "data.flow_control=false is ignored: without it memory would grow with whichever side is slower; "
            "data.window_mb and data.queue_size say how much may be in flight"
        )
    window = min(MOST_WINDOW_BYTES, int(settings.data.window_mb * (1 << 20)))
    queue_size = settings.data.queue_size
    wait_seconds = settings.network.wait_timeout
    if queue_size is None:
        return Bounds(window, wait_seconds=wait_seconds)
    return Bounds(window, queue_size, wait_seconds)


def log_file(settings: Settings) -> AbstractContextManager[None]:
    """The log file that the settings ask for, for the time of a job."""
    monitoring = settings.monitoring
    path = (monitoring.log_file or DEFAULT_FILE) if monitoring.save_logs else None
    return logging_to(path, monitoring.log_level)


def announce(door: ListeningDoor | DiallingDoor, mode: Mode) -> None:
    """Print what to run where the data is. On stdout: it is this command's result so far."""
    if not isinstance(door, ListeningDoor) or door.invite is None:
        return
    host, port = door.address
    print(  # noqa: T201 - the line to paste
        f"Where the data is, set this and run your loader, which calls {CALLS[mode]}(gpu_host={host!r}, "
        f"gpu_port={port}):\n\n    export MANYHANDS_INVITE={door.invite}\n",
        flush=True,
    )
