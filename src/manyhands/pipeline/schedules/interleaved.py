"""1F1B with several stages a worker (Narayanan et al. 2021, section 2.2, https://arxiv.org/abs/2104.04473).

The model is cut into v·p stages and worker w owns w, p+w, 2p+w, …, so the first micro-batch reaches the last worker
after p-1 small stages, not p-1 large ones. Two stages a worker; a to d are forward passes of a stage, A to D backward::

    time ─▶
    worker 0   a0 a1 c0 c1 a2 C0 a3 C1 c2 A0 c3 A1    C2    C3 A2 A3
    worker 1      b0 b1 d0 D0 d1 D1 b2 B0 b3 B1 d2 D2 d3 D3 B2 B3

Micro-batches go in rounds of p: a worker passes one round through its first stage, then through its next one. The
bubble is (p-1)/(v·m+p-1) where m >= p, for v times the messages. Rounds are as even as they can be where p does not
divide m.
"""

from __future__ import annotations

from collections.abc import Iterator

from manyhands.pipeline.schedules.operations import Operation


def interleaved(
    worker: int, num_workers: int, num_micro_batches: int, stages_per_worker: int
) -> Iterator[Operation]:
    """The operations of `worker`, which owns every `num_workers`-th stage from its number on."""
    own = range(worker, worker + num_workers * stages_per_worker, num_workers)
    rounds = list(_rounds(num_workers, num_micro_batches))
    forwards = [(stage, one) for members in rounds for stage in own for one in members]
    backwards = [(stage, one) for members in rounds for stage in reversed(own) for one in members]
    # Until the first backward pass can be here: once through all own stages but the last with a whole round, then
    # to the end of the pipeline and back.
    ahead = (stages_per_worker - 1) * max(map(len, rounds)) + 2 * (num_workers - 1 - worker)
    num_warm_up = min(ahead, len(forwards))
    for stage, micro_batch in forwards[:num_warm_up]:
        yield Operation("forward", stage, micro_batch)
    for at, (stage, micro_batch) in enumerate(backwards):
        if num_warm_up + at < len(forwards):
            yield Operation("forward", *forwards[num_warm_up + at])
        yield Operation("backward", stage, micro_batch)


def _rounds(num_workers: int, num_micro_batches: int) -> Iterator[range]:
    """The micro-batches of each round, in order: about `num_workers` a round."""
    num_rounds = max(num_micro_batches // num_workers, 1)
    size, larger = divmod(num_micro_batches, num_rounds)
    start = 0
    for number in range(num_rounds):
        end = start + size + (number < larger)
        yield range(start, end)
        start = end
