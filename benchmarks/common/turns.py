"""Steps in turns: a process trains so many steps, tells what each took, and waits for the word to go on."""

from __future__ import annotations

import gc
import time
from multiprocessing.connection import Connection as Pipe


class Turns:
    """To be called where a step's weights are final. The word to go on is a number of steps; 0 is the end.

    With `collects`, garbage is collected at the end of a turn, so that memory seen between turns holds none.
    """

    def __init__(self, pipe: Pipe, *, collects: bool = False) -> None:
        self._pipe = pipe
        self._collects = collects
        self._steps = 0
        self._stamps: list[float] = []
        self.is_over = False

    def wait(self) -> None:
        """Block until it is this side's turn."""
        self._steps = self._pipe.recv()
        self.is_over = self._steps == 0
        self._stamps = [time.perf_counter()]

    def step(self, loss: float) -> None:
        """One step is committed; at the end of a turn the milliseconds of each and the last loss are told."""
        self._stamps.append(time.perf_counter())
        if len(self._stamps) > self._steps:
            gaps = [b - a for a, b in zip(self._stamps, self._stamps[1:], strict=False)]
            if self._collects:
                gc.collect()
            self._pipe.send(([gap * 1e3 for gap in gaps], loss))
            self.wait()
