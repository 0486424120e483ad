"""The schedules by name, and what each may be asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Final

from manyhands.errors import UsageError
from manyhands.pipeline.schedules.gpipe import gpipe
from manyhands.pipeline.schedules.interleaved import interleaved
from manyhands.pipeline.schedules.naive import naive
from manyhands.pipeline.schedules.one_forward_one_backward import one_forward_one_backward
from manyhands.pipeline.schedules.operations import Operation, Schedule
from manyhands.pipeline.schedules.zero_bubble import zero_bubble

_ONE_STAGE: Final[Mapping[str, Callable[[int, int, int], Iterator[Operation]]]] = MappingProxyType(
    {"naive": naive, "gpipe": gpipe, "1f1b": one_forward_one_backward, "zero_bubble": zero_bubble}
)

NAMES: Final = (*_ONE_STAGE, "interleaved")
"""Every schedule there is."""


def schedule_of(
    name: str, num_workers: int, num_micro_batches: int, *, stages_per_worker: int | None = None
) -> Schedule:
    """The schedule `name`; stage s is worker s modulo `num_workers`'s.

    Only "interleaved" has more than one stage a worker, two where `stages_per_worker` is None. UsageError for an
    unknown name, or a number below one.
    """
    if name not in NAMES:
        raise UsageError(f"there is no schedule {name!r}; there are {', '.join(NAMES)}")
    if num_workers < 1 or num_micro_batches < 1:
        raise UsageError(
            f"a schedule of {num_workers} workers and {num_micro_batches} micro-batches has no work"
        )
    if name == "interleaved":
        num_stages = 2 if stages_per_worker is None else stages_per_worker
        if num_stages < 1:
            raise UsageError(f"{num_stages} stages a worker; there must be one at least")
        return tuple(
            tuple(interleaved(worker, num_workers, num_micro_batches, num_stages))
            for worker in range(num_workers)
        )
    if stages_per_worker not in (None, 1):
        raise UsageError(
            f'{name!r} has one stage a worker, not {stages_per_worker}: only "interleaved" has several'
        )
    return tuple(
        tuple(_ONE_STAGE[name](worker, num_workers, num_micro_batches)) for worker in range(num_workers)
    )
