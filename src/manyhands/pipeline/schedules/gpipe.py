"""All forward passes, then all backward passes (Huang et al. 2019, GPipe, https://arxiv.org/abs/1811.06965).

::

    time ─▶
    worker 0   F0 F1 F2 F3             B0 B1 B2 B3
    worker 1      F0 F1 F2 F3       B0 B1 B2 B3
    worker 2         F0 F1 F2 F3 B0 B1 B2 B3

The paper runs the backward passes from the last micro-batch to the first. Ours run from the first, as every
schedule here does, so that gradients are added in one order; the time is the same. The bubble is (p-1)/(m+p-1);
all m activations are held.
"""

from __future__ import annotations

from collections.abc import Iterator

from manyhands.pipeline.schedules.operations import Operation


def gpipe(worker: int, num_workers: int, num_micro_batches: int) -> Iterator[Operation]:
    """The operations of `worker`, whose stage has its number."""
    for micro_batch in range(num_micro_batches):
        yield Operation("forward", worker, micro_batch)
    for micro_batch in range(num_micro_batches):
        yield Operation("backward", worker, micro_batch)
