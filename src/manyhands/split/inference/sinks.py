"""Which sink a user's arguments ask for: memory, or a folder that a broken run goes on in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from manyhands.clock import Clock
from manyhands.errors import UsageError
from manyhands.split.inference.collecting import InMemory
from manyhands.split.inference.parts import OnDisk
from manyhands.split.inference.wishes import Wishes


def open_sink(
    output: str | Path | None,
    wishes: Wishes,
    config: Mapping[str, Any],
    num_samples: int | None,
    clock: Clock,
) -> InMemory | OnDisk:
    """Where the rows of an inference go; its `next_sequence` says with which batch to begin.

    ``config`` is what the result repeats, and what must be the same in a run that goes on in the folder ``output``;
    ``num_samples`` are the dataset's, None where it has no length. UsageError for wishes that cannot be.
    """
    wishes.check()
    if output is None:
        return InMemory(config, num_samples, wishes.return_details)
    if wishes.return_details:
        raise UsageError(
            "return_details=True keeps a record of each row in memory, which output= is there to avoid: read the "
            "columns in the folder instead"
        )
    sink = OnDisk(Path(output).expanduser(), config, clock, num_samples)
    sink.open()
    return sink
