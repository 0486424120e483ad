"""One worker process, as the process sees it that started it: spawned, asked, and buried."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Mapping, Sequence
from multiprocessing import connection, reduction
from multiprocessing.process import BaseProcess
from typing import Any

import msgspec

from manyhands.split.jobs import Phase
from manyhands.split.making.slots import Slot
from manyhands.split.making.worker import Ask, serve
from manyhands.split.recipe import Recipe

END_SECONDS = 5.0
"""How long a worker may take to end when asked, before it is killed."""

_SPAWN = multiprocessing.get_context("spawn")
Line = connection.Connection


class Worker:
    """One process and our end of its pipe."""

    def __init__(self, number: int, process: BaseProcess, line: Line) -> None:
        self.number = number
        self.line = line
        self.is_ready = False
        self._process = process
        self._ended: str | None = None

    @classmethod
    def spawn(cls, number: int, slots: Sequence[Slot], recipes: Mapping[Phase, Recipe]) -> Worker:
        """A new one, which shares these slots. What cannot be pickled raises whatever it raises."""
        mine, theirs = _SPAWN.Pipe()
        descriptors = [_Passed(slot.descriptor) for slot in slots]
        process = _SPAWN.Process(
            target=serve,
            args=(theirs, descriptors, recipes),
            name=f"manyhands-worker-{number}",
            daemon=True,
        )
        try:
            process.start()
        except BaseException:
            mine.close()
            raise
        finally:
            theirs.close()
        return cls(number, process, mine)

    def ask(self, ask: Ask) -> None:
        """Hand over one batch to make; a worker that is gone is found out by its pipe."""
        with contextlib.suppress(OSError):
            self.line.send_bytes(msgspec.msgpack.encode(ask))

    def bury(self) -> str:
        """Wait for its end, or end it; how it ended. Twice is fine."""
        if self._ended is None:
            self.line.close()
            self._process.join(END_SECONDS)
            if self._process.is_alive():
                self._process.kill()
                self._process.join()
            code = self._process.exitcode or 0
            self._process.close()
            self._ended = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return self._ended


class _Passed:
    """A descriptor that is inherited by the process that it is pickled for."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __reduce__(self) -> Any:
        return _identity, (reduction.DupFd(self._descriptor),)


def _identity(value: Any) -> Any:
    return value
