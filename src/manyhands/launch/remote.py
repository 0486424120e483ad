"""One machine of `--hosts`: ``python -m manyhands.launch.remote``, started by ssh, told what to do on stdin.

::

    conductor ──ssh──▶ stdin   1 an order: one JSON line     2 "stop" lines     3 its end: the conductor is gone
              ◀─ssh──  stdout  marked JSON lines: where node 0 listens, what ranks print, how it ended

Whatever ends the connection ends the ranks. Nothing is in this process's arguments for others to read.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from dataclasses import asdict, dataclass, replace
from typing import IO, TextIO

from manyhands.clock import SystemClock
from manyhands.errors import ManyhandsError, RunFailed, Unreachable, UsageError
from manyhands.launch.telling import Report

MARK = "manyhands-launch "
_PREFLIGHT_SECONDS = 15.0
_TRY_SECONDS = 3.0


@dataclass(frozen=True)
class Task:
    """What the conductor orders: the command line, and which machine of how many this is.

    `addresses` are those of node 0, the likeliest first; empty on node 0 itself.
    """

    arguments: list[str]
    folder: str
    host: str
    node_rank: int
    num_nodes: int
    nproc: int | None
    port: int | None
    token: str
    addresses: list[str]


class _Marked:
    """A text file that puts the mark before each write: what else ends up on stdout is not ours."""

    def __init__(self, out: IO[str]) -> None:
        self._out = out

    def write(self, text: str) -> int:
        return self._out.write(MARK + text)

    def flush(self) -> None:
        self._out.flush()


def main() -> int:
    """Do one task; the exit code is that of `manyhands launch`."""
    line = sys.stdin.readline()
    if not line:
        return 0
    task = Task(**json.loads(line))
    report = Report(_Marked(sys.stdout), task.host)
    # Whatever a library prints here must not look like an event.
    sys.stdout = sys.stderr
    threading.Thread(target=_obey, args=(sys.stdin,), name="manyhands-orders", daemon=True).start()
    try:
        code = _run(task, report)
    except ManyhandsError as error:
        report.send({"event": "error", "kind": type(error).__name__, "text": str(error)})
        return error.exit_code
    report.send({"event": "done", "code": code})
    return code


def _obey(orders: TextIO) -> None:
    """Turn each word of the conductor's into a signal, and its silence into SIGTERM."""
    for line in orders:
        os.kill(os.getpid(), signal.Signals[line.strip()])
    os.kill(os.getpid(), signal.SIGTERM)


def _run(task: Task, report: Report) -> int:
    try:
        os.chdir(task.folder)
    except OSError as error:
        raise UsageError(
            f"the folder {task.folder} cannot be entered ({error.strerror}): the script must lie at the same "
            "path on all machines"
        ) from None
    from manyhands.launch.launcher import Site, run_here
    from manyhands.launch.options import parse

    order = parse(task.arguments)
    if task.nproc is not None:
        order.torchrun.nproc_per_node = task.nproc
    order = replace(order, hosts=(), least_nodes=task.num_nodes, most_nodes=task.num_nodes)
    site = Site(task.node_rank, task.num_nodes, None, task.port, task.host, task.token)
    if task.node_rank == 0:
        site = replace(site, address=_own_addresses()[0], announce=lambda port: report.send(_listening(port)))
    else:
        assert task.port is not None
        site = replace(site, address=_first_that_answers(task.addresses, task.port))
    return run_here(order, site, report)


def _listening(port: int) -> dict[str, object]:
    return {"event": "listening", "port": port, "addresses": _own_addresses()}


def _own_addresses() -> list[str]:
    """Under which node 0 may be found: first where ssh has found it, last what only this machine reaches."""
    from manyhands.wire.address import is_loopback, local_addresses

    by_ssh = os.environ.get("SSH_CONNECTION", "").split()[2:3]
    return sorted(dict.fromkeys([*by_ssh, *local_addresses()]), key=is_loopback)


def _first_that_answers(addresses: list[str], port: int) -> str:
    """The preflight: an address of node 0 that this machine reaches. `Unreachable` saying why none."""
    from manyhands.launch.addresses import answers

    clock = SystemClock()
    deadline = clock.monotonic() + _PREFLIGHT_SECONDS
    while True:
        reasons = {}
        for address in addresses:
            reason = answers(address, port, _TRY_SECONDS)
            if reason is None:
                return address
            reasons[address] = reason
        if clock.monotonic() >= deadline:
            why = ", ".join(f"{address}: {reason}" for address, reason in reasons.items())
            raise Unreachable(
                f"node 0 does not answer on port {port} ({why}): let that port through its firewall, or choose "
                "one that is open with --master-port"
            )
        clock.sleep(0.2)


def read_event(line: str) -> dict[str, object] | None:
    """The event of a marked line; None for any other line."""
    if not line.startswith(MARK):
        return None
    try:
        event = json.loads(line.removeprefix(MARK))
    except ValueError as error:
        raise RunFailed(f"a machine's launcher sent what is no event: {line[:80]!r}") from error
    return event if isinstance(event, dict) else None


def write_task(task: Task) -> str:
    """The order as its line."""
    return json.dumps(asdict(task)) + "\n"


if __name__ == "__main__":
    sys.exit(main())
