"""From an order to the parts that run it: the command of a rank, the agent, the logs."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from torch.distributed.elastic.agent.server.api import WorkerSpec
from torch.distributed.elastic.multiprocessing import Std
from torch.distributed.elastic.rendezvous import RendezvousHandler

from manyhands.clock import Clock
from manyhands.errors import UsageError
from manyhands.launch.agent import Agent
from manyhands.launch.logs import Logs
from manyhands.launch.meeting import Meeting
from manyhands.launch.options import Order
from manyhands.launch.telling import Teller

_FAST_MONITOR_SECONDS, _MONITOR_SECONDS = 0.02, 0.1
"""How often the ranks are looked at: asking our own store costs nothing, asking torch's rendezvous does."""

_Value = TypeVar("_Value")


def check_script(order: Order) -> None:
    """UsageError where there is nothing to run."""
    script = order.script
    if order.torchrun.module:
        return
    if order.torchrun.no_python:
        if shutil.which(script) is None:
            raise UsageError(f"the program {script} is not found on this machine's PATH")
        return
    path = Path(script)
    if path.is_dir() and not (path / "__main__.py").exists():
        raise UsageError(f"{script} is a folder without a __main__.py: name a Python file")
    if not path.exists():
        raise UsageError(f"the script {script} does not exist (looked in {Path.cwd()}): check its name")


def build_agent(
    order: Order,
    num_processes: int,
    handler: RendezvousHandler,
    logs: Logs,
    clock: Clock,
    note: Callable[[str], None],
) -> Agent:
    """The agent of this machine, with so many ranks that meet at `handler`."""
    given = order.torchrun
    program, arguments = _command(order)
    is_static = isinstance(handler, Meeting)
    spec = WorkerSpec(
        role=given.role,
        local_world_size=num_processes,
        entrypoint=program,
        args=tuple(arguments),
        rdzv_handler=handler,
        max_restarts=given.max_restarts,
        monitor_interval=given.monitor_interval or (_FAST_MONITOR_SECONDS if is_static else _MONITOR_SECONDS),
        local_addr=given.local_addr,
        event_log_handler=given.event_log_handler,
        numa_options=_numa(given),
        virtual_local_rank=given.virtual_local_rank,
    )
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = given.signals_to_handle
    seconds = given.shutdown_timeout
    if seconds is None:
        seconds = int(os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "30"))
    board = handler.board if isinstance(handler, Meeting) else None
    return Agent(spec, logs, clock, note, board, seconds)


def _numa(given: Any) -> Any:
    if given.numa_binding is None:
        return None
    from torch.numa.binding import AffinityMode, NumaOptions

    return NumaOptions(affinity_mode=AffinityMode(given.numa_binding))


def _command(order: Order) -> tuple[str, list[str]]:
    """The program of a rank and its arguments."""
    given = order.torchrun
    if given.no_python and not given.run_path:
        return order.script, order.script_arguments
    options = ["-u", "-m"] if given.module else ["-u"]
    return os.environ.get("PYTHON_EXEC", sys.executable), [*options, order.script, *order.script_arguments]


def build_logs(order: Order, host: str, scratch: Path, teller: Teller, clock: Clock) -> Logs:
    """Where the ranks' output goes; error files into `scratch`. UsageError for options that make no sense."""
    given = order.torchrun
    keeps = given.log_dir is not None
    shown = _checked("--local-ranks-filter", given.local_ranks_filter, _numbers)
    redirects = _checked("--redirects", given.redirects, Std.from_str)
    tee = _checked("--tee", given.tee or ("3" if keeps and given.redirects == "0" else "0"), Std.from_str)
    filters = {"out": given.duplicate_stdout_filters, "err": given.duplicate_stderr_filters}
    try:
        return Logs(
            Path(given.log_dir) if keeps else scratch,
            teller,
            clock,
            host=host,
            redirects=redirects,
            tee=tee,
            shown_ranks=shown,
            filters={stream: words for stream, words in filters.items() if words},
        )
    except OSError as error:
        raise UsageError(f"--log-dir {given.log_dir}: {error.strerror}") from None


def _checked(option: str, text: str, read: Callable[[str], _Value]) -> _Value:
    """What an option's text stands for. UsageError naming the option."""
    try:
        return read(text)
    except ValueError as error:
        raise UsageError(f"{option} {text}: {error}") from None


def _numbers(text: str) -> set[int] | None:
    return {int(number) for number in text.split(",")} if text else None
