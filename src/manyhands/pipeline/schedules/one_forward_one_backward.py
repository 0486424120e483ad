"""A backward pass as soon as there is one (Narayanan et al. 2019, PipeDream, https://arxiv.org/abs/1806.03377).

The variant with a flush at the end of each step, so that no weight is stale (Narayanan et al. 2021, section 2.2,
https://arxiv.org/abs/2104.04473)::

    time ─▶       warm-up │ one forward, one backward │ cool-down
    worker 0   F0 F1 F2       B0 F3 B1    B2    B3
    worker 1      F0 F1    B0 F2 B1 F3 B2    B3
    worker 2         F0 B0 F1 B1 F2 B2 F3 B3

The bubble is (p-1)/(m+p-1), as GPipe's, but worker w holds p-w activations, not m.
"""

from __future__ import annotations

from collections.abc import Iterator

from manyhands.pipeline.schedules.operations import Operation


def one_forward_one_backward(worker: int, num_workers: int, num_micro_batches: int) -> Iterator[Operation]:
    """The operations of `worker`, whose stage has its number."""
    num_warm_up = min(num_workers - 1 - worker, num_micro_batches)
    for micro_batch in range(num_warm_up):
        yield Operation("forward", worker, micro_batch)
    for micro_batch in range(num_micro_batches):
        if num_warm_up + micro_batch < num_micro_batches:
            yield Operation("forward", worker, num_warm_up + micro_batch)
        yield Operation("backward", worker, micro_batch)
