"""torch's elastic agent, with an eye on who fails first and a hand that ends all.

::

    rank 2 fails ──▶ 1 a moment for its peers to fail by themselves (their own exit codes, their own tracebacks)
                     2 SIGTERM to what still runs, SIGKILL after a few seconds
                     3 SIGKILL to whatever the ranks have started and left behind
                     4 a restart where one is left, else the failures

Each rank is the leader of a process group of its own (torch starts it so), which is how its children are
found; a `Reaper` ends those groups where this process is killed. Knows nothing of how a failure is judged or shown.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from subprocess import Popen
from typing import Any

from torch.distributed.elastic.agent.server import api as _agent_api
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import SignalException

from manyhands.clock import Clock
from manyhands.launch.blame import Failure, describe, judge
from manyhands.launch.board import Board
from manyhands.launch.logs import Logs
from manyhands.launch.reaper import Reaper

SETTLE_SECONDS = 1.0
STOP_SECONDS = 2.0
_POLL_SECONDS = 0.01
_TORCH_LOGS = "torch.distributed.elastic"

Ranks = Mapping[int, "Popen[bytes]"]


class Agent(LocalElasticAgent):
    """Runs the ranks of this machine; `failures` are those of the last attempt.

    `board` is asked whether the launch has failed on another machine (None where there is none); `note` gets a
    sentence about each restart.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        logs: Logs,
        clock: Clock,
        note: Callable[[str], None],
        board: Board | None,
        shutdown_seconds: int,
    ) -> None:
        super().__init__(spec=spec, logs_specs=logs, shutdown_timeout=shutdown_seconds)
        self._logs = logs
        self._clock = clock
        self._note = note
        self._reaper = Reaper()
        self.board = board
        self.failures: list[Failure] = []

    # ---- torch's steps, and what we add to each ----

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        pids: dict[int, Any] = super()._start_workers(worker_group)
        self._reaper.start(process.pid for process in self._ranks(worker_group).values())
        for handler in self._handlers.values():
            # With our own ends closed, a pipe ends when its rank does.
            handler._stdout.close()
            handler._stderr.close()
        self._logs.start()
        return pids

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        ranks = self._ranks(worker_group)
        if any(process.poll() for process in ranks.values()):
            self._end_failed(ranks)
        elif self.board is not None and self.board.is_over:
            self._remaining_restarts = 0
            self._end_failed(ranks)
        result: RunResult = super()._monitor_workers(worker_group)
        return result

    def _restart_workers(self, worker_group: WorkerGroup) -> None:
        if self.failures:
            attempt = worker_group.spec.max_restarts - self._remaining_restarts
            self._note(describe(judge(self.failures)).removeprefix("manyhands: ").rstrip("\n"))
            self._note(f"restarting all ranks: restart {attempt} of {worker_group.spec.max_restarts}")
        else:
            self._note("other machines begin anew: restarting all ranks")
        self.failures = []
        super()._restart_workers(worker_group)

    def _exit_barrier(self) -> None:
        if self.board is None:
            super()._exit_barrier()  # type: ignore[no-untyped-call]
        else:
            self.board.wait_ended([*self._ranks(self._worker_group)])

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, timeout: int = 30) -> None:
        ranks = self._ranks(self._worker_group)
        try:
            end(ranks, death_sig, timeout, self._clock)
        except SignalException:
            self._note("asked twice: killing all ranks")
        finally:
            sweep(ranks)
            self._reaper.dismiss()
            super()._shutdown(death_sig, timeout)
            self._logs.finish()

    # ---- inside ----

    def _ranks(self, worker_group: WorkerGroup) -> dict[int, Popen[bytes]]:
        handlers = self._handlers
        return {worker_group.workers[local].global_rank: handlers[local].proc for local in handlers}

    @property
    def _handlers(self) -> dict[int, Any]:
        """By local rank; empty before the first start."""
        return getattr(self._pcontext, "subprocess_handlers", {})

    def _end_failed(self, ranks: Ranks) -> None:
        """Steps 1 to 3."""
        _wait(ranks, SETTLE_SECONDS, self._clock)
        running = {rank for rank, process in ranks.items() if process.poll() is None}
        end(ranks, signal.SIGTERM, STOP_SECONDS, self._clock)
        sweep(ranks)
        codes = {rank: process.returncode for rank, process in ranks.items() if process.returncode}
        if codes:  # others may have waited for those that ended well
            codes |= {
                rank: 0 for rank, process in ranks.items() if process.returncode == 0 and rank not in running
            }
        # A signal leaves no time for a traceback: one from long before is of an error that the rank survived. One
        # from just now is why it ended: libraries abort when an interpreter leaves in a hurry.
        told = {
            rank
            for rank, code in codes.items()
            if code > 0 or rank in running or self._logs.witnesses[rank].holds_last_words
        }
        self._logs.finish(told)
        self.failures = [
            self._failure(rank, code, rank in running, rank in told) for rank, code in codes.items()
        ]

    def _failure(self, rank: int, exit_code: int, was_stopped: bool, told: bool) -> Failure:
        witness = self._logs.witnesses[rank]
        has_told = told and witness.at is not None
        ended_at = self._logs.ended_at.get(rank, self._clock.monotonic())
        return Failure(
            rank=rank,
            exit_code=exit_code,
            at=witness.at if has_told and witness.at is not None else ended_at,
            traceback=witness.traceback if has_told else "",
            was_stopped=was_stopped,
        )


def end(ranks: Ranks, number: signal.Signals, seconds: float, clock: Clock) -> None:
    """Send a signal to every rank that runs and to its children; SIGKILL to what is left after `seconds`."""
    running = [process for process in ranks.values() if process.poll() is None]
    for process in running:
        _signal_group(process.pid, number)
    _wait(ranks, seconds, clock)
    for process in running:
        if process.poll() is None:
            _signal_group(process.pid, signal.SIGKILL)
    _wait(ranks, seconds, clock)


def sweep(ranks: Ranks) -> None:
    """SIGKILL to what ranks have started and left behind."""
    for process in ranks.values():
        _signal_group(process.pid, signal.SIGKILL)


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(
        ProcessLookupError, PermissionError
    ):  # macOS says the second of a group that ended
        os.killpg(pid, number)


def _wait(ranks: Ranks, seconds: float, clock: Clock) -> None:
    deadline = clock.monotonic() + seconds
    while any(process.poll() is None for process in ranks.values()) and clock.monotonic() < deadline:
        clock.sleep(_POLL_SECONDS)


@contextlib.contextmanager
def our_signals() -> Iterator[None]:
    """Put this process's signal handlers back after torch's agent has set its own."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            with contextlib.suppress(ValueError):  # not in the main thread: torch has set none
                signal.signal(number, handler)


@contextlib.contextmanager
def our_environment() -> Iterator[None]:
    """Put this process's environment back: what ranks are to inherit is nobody else's."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def quiet_agent() -> Iterator[None]:
    """Keep torch's agent from telling what we tell, and from asking for this machine's full name at each event.

    Without a name server the latter takes many seconds each time, for a field of a log that nobody reads.
    """
    # Each of them has a level of its own, so the one above them all counts for nothing.
    logs = [
        logging.getLogger(name) for name in [*logging.root.manager.loggerDict] if name.startswith(_TORCH_LOGS)
    ]
    before = _agent_api._get_fq_hostname, [log.level for log in logs]
    _agent_api._get_fq_hostname = socket.gethostname
    for log in logs:
        log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        _agent_api._get_fq_hostname = before[0]
        for log, level in zip(logs, before[1], strict=True):
            log.setLevel(level)
