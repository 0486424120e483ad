"""Machines that join by the real command, from a folder that holds nothing, and what runs under them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from manyhands.testing import LocalCluster
from manyhands.testing.process import wait_for

JOBS = str(Path(__file__).parents[1] / "testing" / "jobs.py")
OWN_JOBS = str(Path(__file__).with_name("lent_jobs.py"))
ENDLESS = {"epochs": 1_000_000}


@contextmanager
def coordinator(target: str = f"{JOBS}:build", **options: Any) -> Iterator[LocalCluster]:
    """A run without nodes of its own."""
    with LocalCluster(target, nodes=0, options=options) as cluster:
        yield cluster


class Joined:
    """One ``manyhands join``, its output in files, its compute processes."""

    def __init__(
        self, arguments: tuple[str, ...], state: Path, folder: Path, said: str | None, more: dict[str, str]
    ) -> None:
        folder.mkdir()
        stdin = folder.with_suffix(".in")
        stdin.write_text(said or "")
        self._errors = folder.with_suffix(".err")
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MANYHANDS_")}
        with self._errors.open("wb") as errors, stdin.open("rb") as words:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "manyhands", *arguments],
                cwd=folder,
                env={**kept, "MANYHANDS_STATE_DIR": str(state), **more},
                stdin=words,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    @property
    def errors(self) -> str:
        return self._errors.read_text(errors="replace")

    @property
    def children(self) -> list[psutil.Process]:
        return [
            child
            for child in psutil.Process(self.process.pid).children()
            if "manyhands.pool.lending.child" in child.cmdline()
        ]

    def child(self) -> psutil.Process:
        """Its compute process, as soon as there is one."""
        wait_for(lambda: bool(self.children), 30.0, "a compute process")
        return self.children[0]

    def ends(self, timeout: float = 60.0) -> int:
        """Its exit code; what it printed is in the error where it goes on."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise TimeoutError(self.errors) from None

    def close(self) -> None:
        children = self.children if self.process.poll() is None else []
        for process in (self.process, *children):
            process.kill()
        self.process.communicate()


@contextmanager
def join(
    *arguments: str, state: Path, folder: Path, said: str | None = None, **more: str
) -> Iterator[Joined]:
    joined = Joined(("join", *arguments), state, folder, said, more)
    try:
        yield joined
    finally:
        joined.close()


def wait_steps(cluster: LocalCluster, count: int = 1) -> None:
    """Wait until this incarnation has committed `count` steps more than it has now."""
    done = len(cluster.step_seconds)
    wait_for(lambda: len(cluster.step_seconds) >= done + count, 90.0, f"{count} steps more\n{cluster.logs()}")
