"""The processes of one benchmark: started by spawn, each with a pipe to here, none left behind."""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from multiprocessing.connection import Connection as Pipe
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from common.links import enter

SPAWN = multiprocessing.get_context("spawn")
ANSWER_SECONDS = 300.0


class Cast:
    """Processes and the scratch folder that they share; a context manager that ends them.

    A target is called as ``target(pipe, folder, *arguments)`` and should begin with :func:`prepare_process`.
    Where the block ends with an error, the processes are terminated and what they wrote is shown.
    """

    def __init__(self) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="manyhands-bench-")
        self._processes: list[BaseProcess] = []
        self.folder = Path(self._scratch.name)

    def __enter__(self) -> Cast:
        return self

    def start(self, target: Any, *arguments: Any, host: str | None = None) -> tuple[Pipe, int]:
        """A new process, on `host` (a network namespace) or here; this end of its pipe, and its pid."""
        here, there = SPAWN.Pipe()
        process = SPAWN.Process(
            target=_run_on, args=(host, target, there, str(self.folder), *arguments), daemon=True
        )
        process.start()
        there.close()
        self._processes.append(process)
        assert process.pid is not None
        return here, process.pid

    def wait(self) -> None:
        """Wait for all processes to end; they must have been told to."""
        for process in self._processes:
            process.join(ANSWER_SECONDS)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            if error is not None:
                process.terminate()
            process.join(20)
            if process.is_alive():
                process.kill()
                process.join()
        if error is not None:
            for log in self.folder.glob("log-*"):
                sys.stderr.write(log.read_text())
        self._scratch.cleanup()


def _run_on(host: str | None, target: Any, *arguments: Any) -> None:
    if host is not None:
        enter(host)
    target(*arguments)


def prepare_process(folder: str) -> None:
    """What every process of a benchmark begins with: the state folder, one thread, a quiet stdout."""
    os.environ["MANYHANDS_STATE_DIR"] = folder
    torch.set_num_threads(1)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    log = os.open(f"{folder}/log-{os.getpid()}.txt", os.O_WRONLY | os.O_CREAT, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)


def answer(pipe: Pipe) -> Any:
    """What a process says; RuntimeError where it says nothing for too long, EOFError where it has ended."""
    if not pipe.poll(ANSWER_SECONDS):
        raise RuntimeError(f"a benchmark process gave no answer for {ANSWER_SECONDS:.0f} s")
    return pipe.recv()
