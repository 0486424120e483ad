"""Trainers in processes of their own, as users start them; a test may kill them at any batch."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from manyhands.settings.children import child_environment
from manyhands.split.trainer import GPUTrainer

HERE = Path(__file__).parent


class TrainerProcess:
    """A script that runs a `GPUTrainer`; its output can be waited for, line by line."""

    def __init__(self, script: str, arguments: Sequence[Any], state: Path, folder: Path) -> None:
        environment = child_environment({"MANYHANDS_STATE_DIR": str(state), "PYTHONPATH": str(HERE)})
        self.process = subprocess.Popen(
            [sys.executable, "-u", HERE / script, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=folder,
        )
        self.errors: list[str] = []
        self._lines: SimpleQueue[str | None] = SimpleQueue()
        self._readers = [
            threading.Thread(target=self._read_output, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _read_output(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as output:
            for line in output:
                self._lines.put(line.strip())
        self._lines.put(None)

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as errors:
            self.errors += errors

    def line(self, containing: str) -> str:
        """The next line with these words; fails with what was said on stderr when it ends before."""
        while (line := self._lines.get(timeout=60)) is not None:
            if containing in line:
                return line
        raise AssertionError(f"the trainer ended without {containing!r}:\n" + "".join(self.errors))

    def invite(self) -> str:
        return self.line("MANYHANDS_INVITE=").partition("=")[2]

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.end()

    def end(self) -> int:
        code = self.process.wait(60)
        for reader in self._readers:
            reader.join()
        return code


@contextmanager
def trainer_process(script: str, *arguments: Any, state: Path, folder: Path) -> Iterator[TrainerProcess]:
    """Killed at the end of the block, if it is still there."""
    process = TrainerProcess(script, arguments, state, folder)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.process.kill()
        process.end()


@contextmanager
def serving(trainer: GPUTrainer, run: Any) -> Iterator[dict[str, Any]]:
    """`run(trainer)` in a thread of this process; what it returned or raised, once the block has ended."""
    outcome: dict[str, Any] = {}

    def main() -> None:
        try:
            outcome["result"] = run(trainer)
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            outcome["error"] = error

    thread = threading.Thread(target=main, daemon=True)  # one that hangs must not keep the tests from ending
    thread.start()
    try:
        yield outcome
    except BaseException:
        trainer.stop()
        raise
    finally:
        thread.join(60)
        assert not thread.is_alive()


def up(trainer: GPUTrainer, outcome: dict[str, Any]) -> tuple[str, int]:
    """The address of a trainer that starts in a thread, once it listens."""
    gap = threading.Event()
    while True:
        if "error" in outcome:
            raise outcome["error"]
        with suppress(ValueError):
            return trainer.address
        gap.wait(0.01)
