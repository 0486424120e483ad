"""One micro-batch after the other, one worker at a time: the plain way, and the one that is easiest to follow.

::

    time ─▶
    worker 0   F0             B0 F1             B1
    worker 1      F0       B0       F1       B1
    worker 2         F0 B0             F1 B1

The bubble is (p-1)/p whatever the number of micro-batches; one activation is held a stage.
"""

from __future__ import annotations

from collections.abc import Iterator

from manyhands.pipeline.schedules.operations import Operation


def naive(worker: int, num_workers: int, num_micro_batches: int) -> Iterator[Operation]:
    """The operations of `worker`, whose stage has its number."""
    for micro_batch in range(num_micro_batches):
        yield Operation("forward", worker, micro_batch)
        yield Operation("backward", worker, micro_batch)
