"""How far a run is: a bar on a terminal, plain lines elsewhere (a pipe, a log, a notebook). On stderr.

Time comes from the clock that is passed in; nothing here starts a thread. Names that peers chose must have
gone through `text.clean_name` before.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from manyhands.clock import Clock
from manyhands.observe.rates import format_count, format_duration

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

_BAR_SECONDS = 0.1


@dataclass(frozen=True)
class Standing:
    """Where a run stands; None is what is not known yet."""

    step: int
    total_steps: int | None = None
    loss: float | None = None
    samples_per_second: float | None = None
    nodes: int | None = None
    epoch: int | None = None
    more: tuple[str, ...] = ()
    """What else a mode has to say, a few words each."""


class Progress(Protocol):
    """Shows a run. Used from one thread."""

    def update(self, standing: Standing) -> None:
        """Show it, unless something was shown a moment ago. Cheap enough for every step."""
        ...

    def note(self, text: str) -> None:
        """Print one line of its own at once."""
        ...

    def close(self) -> None:
        """Show the last standing and end; safe to call twice."""
        ...


def open_progress(
    clock: Clock, *, stream: TextIO | None = None, bars: bool = True, line_seconds: float = 5.0
) -> Progress:
    """A bar if `stream` (default: stderr) is a terminal and `bars`, else a line every `line_seconds`."""
    target = stream if stream is not None else sys.stderr
    if bars and target.isatty():
        return BarProgress(clock, target)
    return LineProgress(clock, target, line_seconds)


def describe(standing: Standing, left_seconds: float | None = None) -> str:
    """`step 40/200 · epoch 1 · loss 0.4213 · 1.2k samples/s · 3 nodes · 12 s left`."""
    of = "" if standing.total_steps is None else f"/{standing.total_steps}"
    parts = [f"step {standing.step}{of}"]
    if standing.epoch is not None:
        parts.append(f"epoch {standing.epoch}")
    if standing.loss is not None:
        parts.append(f"loss {standing.loss:.4g}")
    if standing.samples_per_second is not None:
        parts.append(f"{format_count(standing.samples_per_second)} samples/s")
    if standing.nodes is not None:
        parts.append("1 node" if standing.nodes == 1 else f"{standing.nodes} nodes")
    parts += standing.more
    if left_seconds is not None:
        parts.append(f"{format_duration(left_seconds)} left")
    return " · ".join(parts)


class _Pace:
    """When something may be shown again, and how long the rest will take."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock = clock
        self._seconds = seconds
        self._shown_at: float | None = None
        self._first: tuple[float, int] | None = None

    def due(self, standing: Standing) -> bool:
        now = self._clock.monotonic()
        self._first = self._first or (now, standing.step)
        if self._shown_at is not None and now - self._shown_at < self._seconds:
            return False
        self._shown_at = now
        return True

    def left_seconds(self, standing: Standing) -> float | None:
        if self._first is None or standing.total_steps is None:
            return None
        started_at, first_step = self._first
        done = standing.step - first_step
        if done <= 0:
            return None
        return (self._clock.monotonic() - started_at) / done * max(0, standing.total_steps - standing.step)


class _Shown:
    """What bars and lines share: the pace, and the last standing that is still to be shown."""

    def __init__(self, pace: _Pace, show: Callable[[str, Standing], None]) -> None:
        self._pace = pace
        self._show = show
        self._unshown: Standing | None = None

    def update(self, standing: Standing) -> None:
        self._unshown = standing
        if self._pace.due(standing):
            self.finish()

    def finish(self) -> None:
        if self._unshown is not None:
            self._show(describe(self._unshown, self._pace.left_seconds(self._unshown)), self._unshown)
            self._unshown = None


class LineProgress:
    """Plain lines, at most one every `line_seconds`; the last standing is always shown."""

    def __init__(self, clock: Clock, stream: TextIO, line_seconds: float) -> None:
        self._stream = stream
        self._shown = _Shown(_Pace(clock, line_seconds), lambda text, _: self.note(text))

    def update(self, standing: Standing) -> None:
        """Print a line if it is time."""
        self._shown.update(standing)

    def note(self, text: str) -> None:
        """Print `text` as a line."""
        self._stream.write(text + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Print the last standing if it was not."""
        self._shown.finish()


class BarProgress:
    """A bar that is redrawn at most ten times a second, on a terminal."""

    def __init__(self, clock: Clock, stream: TextIO) -> None:
        self._stream = stream
        self._bar: RichProgress | None = None
        self._task: Any = None
        self._shown = _Shown(_Pace(clock, _BAR_SECONDS), self._draw)

    def update(self, standing: Standing) -> None:
        """Redraw if it is time."""
        self._shown.update(standing)

    def note(self, text: str) -> None:
        """Print `text` above the bar."""
        if self._bar is None:
            self._stream.write(text + "\n")
            self._stream.flush()
        else:
            self._bar.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        """Draw the last standing and leave it on the screen."""
        self._shown.finish()
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _draw(self, text: str, standing: Standing) -> None:
        if self._bar is None:
            self._bar = _new_bar(self._stream)
            self._task = self._bar.add_task(text, total=standing.total_steps)
            self._bar.start()
        self._bar.update(
            self._task, completed=standing.step, total=standing.total_steps, description=text, refresh=True
        )


def _new_bar(stream: TextIO) -> RichProgress:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as RichProgress

    return RichProgress(
        BarColumn(bar_width=24),
        TextColumn("{task.description}", markup=False),
        console=Console(file=stream),
        auto_refresh=False,
    )
