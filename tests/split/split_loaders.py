"""Loaders as processes, for tests that kill them; and trainers' ends of streams without a model."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


class LoaderProcess:
    """One run of `split_loader_child.py`."""

    def __init__(self, state: Path, port: int, **data: Any) -> None:
        given = {
            "samples": 1000,
            "batch": 10,
            "epochs": 1,
            "milliseconds": 0,
            "workers": 0,
            "seed": 0,
            **data,
        }
        self.process = subprocess.Popen(
            [
                sys.executable,
                str(HERE / "split_loader_child.py"),
                "127.0.0.1",
                str(port),
                *map(str, given.values()),
            ],
            env={**os.environ, "MANYHANDS_STATE_DIR": str(state)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def kill(self) -> None:
        self.process.kill()

    def end(self, timeout: float = 60) -> tuple[int, str, str]:
        """Exit code, stdout and stderr, once it has ended by itself."""
        out, err = self.process.communicate(timeout=timeout)
        return self.process.returncode, out, err

    def dispose(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


@contextmanager
def loader_processes(state: Path, port: int, count: int = 1, **data: Any) -> Iterator[list[LoaderProcess]]:
    """So many loaders of one job; none is left behind."""
    loaders = [LoaderProcess(state, port, **data) for _ in range(count)]
    try:
        yield loaders
    finally:
        for loader in loaders:
            loader.dispose()


class Background:
    """A call on another thread, with its value or its error."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._value: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._main, daemon=True)
        self._thread.start()

    def _main(self) -> None:
        try:
            self._value = self._call()
        except BaseException as error:  # noqa: BLE001 - raised in the test's thread
            self._error = error

    def result(self, timeout: float = 60) -> Any:
        self._thread.join(timeout)
        assert not self._thread.is_alive(), "the call has not returned"
        if self._error is not None:
            raise self._error
        return self._value
