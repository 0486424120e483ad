"""A rank's loop, shown to a person: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any

from manyhands.clock import Clock
from manyhands.observe.progress import Standing, open_progress
from manyhands.settings import load


def shown(
    batches: Iterable[Any], epoch: int | None, loss: Callable[[], float | None], clock: Clock
) -> Iterator[Any]:
    """The same batches; each counts when the next one is asked for. `loss` is what to show beside it."""
    settings = load()
    progress = open_progress(
        clock, bars=settings.monitoring.progress_bars, line_seconds=settings.advanced.plain_line_seconds
    )
    length = len(batches) if isinstance(batches, Sized) else None
    try:
        for step, batch in enumerate(batches, 1):
            yield batch
            progress.update(Standing(step, length, loss(), epoch=epoch))
    finally:
        progress.close()
