"""The weights' half of a backward pass fills the bubble (Qi et al. 2023, ZB-H1, https://arxiv.org/abs/2401.10241).

Nobody waits for a weight's gradient before the step, so a backward pass is parted: I makes the gradient of the
stage's inputs, which the worker before waits for, W that of its weights, whenever there is time::

    time ─▶
    worker 0   F0 F1 F2       I0 W0 F3 I1 W1 I2 W2 I3 W3
    worker 1      F0 F1    I0 F2 I1 W0 F3 I2 W1 I3 W2 W3
    worker 2         F0 I0 F1 I1 F2 I2 W0 F3 I3 W1 W2 W3

Worker w puts W off by w micro-batches, so every worker holds at most p activations, as the first one does in 1F1B.
With passes of equal time and m >= p the bubble is (p-1)/(3m+p-1), a third of 1F1B's.
"""

from __future__ import annotations

from collections.abc import Iterator

from manyhands.pipeline.schedules.operations import Operation


def zero_bubble(worker: int, num_workers: int, num_micro_batches: int) -> Iterator[Operation]:
    """The operations of `worker`, whose stage has its number."""
    num_warm_up = min(num_workers - 1 - worker, num_micro_batches)
    for micro_batch in range(num_warm_up):
        yield Operation("forward", worker, micro_batch)
    for micro_batch in range(num_micro_batches):
        if num_warm_up + micro_batch < num_micro_batches:
            yield Operation("forward", worker, num_warm_up + micro_batch)
        yield Operation("input_backward", worker, micro_batch)
        if micro_batch >= worker:
            yield Operation("weight_backward", worker, micro_batch - worker)
    for micro_batch in range(max(num_micro_batches - worker, 0), num_micro_batches):
        yield Operation("weight_backward", worker, micro_batch)
