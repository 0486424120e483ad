"""Replicas of a whole pipeline: the same stage of each adds up what all of them found, before the step.

::

    replica 0, stage 1   gradients ──┐  ┌── gradients   replica 1, stage 1      after the last weight pass and the
                         sum  ◀──────┴──┴──────▶ sum                            totals of shared parameters

Each micro-batch's loss counts by its share of the whole batch, so the sum is the batch's gradient. All add in the
order of the replicas, so all have the same bits, and step alike. Buffers are the first replica's after each step, as
DistributedDataParallel has them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from manyhands.pipeline.placement import Placement
from manyhands.pipeline.post import Name, Post, tensors_by_name
from manyhands.pipeline.snapshots import PART_BYTES
from manyhands.pipeline.stage.engine import StageEngine


class Replicas:
    """What the stages of one worker say to the same stages of other replicas. Used by one thread."""

    def __init__(self, placement: Placement, post: Post, device: torch.device) -> None:
        self._placement = placement
        self._post = post
        self._device = device

    def add_up(self, engines: Mapping[int, StageEngine]) -> None:
        """Make the gradients of each stage the sum over its replicas."""
        own = {stage: list(_parts(engine)) for stage, engine in engines.items()}
        for stage, parts in own.items():
            for at, part in enumerate(parts):
                self._offer(stage, at, part)
        for stage, engine in engines.items():
            total: dict[str, Tensor] = {}
            for at, part in enumerate(own[stage]):
                total |= summed(
                    part if other == stage else self._take(other, at, stage)
                    for other in self._placement.same_stages(stage)
                )
            engine.put_gradients(total)

    def follow(self, engines: Mapping[int, StageEngine]) -> None:
        """Take up the buffers of the first replica."""
        with_buffers = {stage: engine for stage, engine in engines.items() if engine.weights.buffers}
        for stage, engine in with_buffers.items():
            if self._placement.replica_of(stage) == 0:
                self._offer(stage, 0, dict(engine.weights.buffers))
        for stage, engine in with_buffers.items():
            first = self._placement.same_stages(stage)[0]
            if stage != first:
                engine.weights.load(self._take(first, 0, stage))

    def _offer(self, stage: int, at: int, part: Mapping[str, Tensor]) -> None:
        for other in self._placement.same_stages(stage):
            if other != stage:
                self._post.send(self._placement.owners[other], Name("replica", str(stage), at, other), part)

    def _take(self, sender: int, at: int, stage: int) -> dict[str, Tensor]:
        part = tensors_by_name(self._post.value(Name("replica", str(sender), at, stage)))
        return {name: one.to(self._device) for name, one in part.items()}


def summed(parts: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The sum of tensors by name, in the order of `parts`; one that none has is not in it."""
    total: dict[str, Tensor] = {}
    for part in parts:
        for name, one in part.items():
            total[name] = total[name] + one if name in total else one
    return total


def _parts(engine: StageEngine) -> Iterator[dict[str, Tensor]]:
    """A stage's gradients; the parts are the same in every replica, whichever gradients there are."""
    gradients = engine.gradients()
    part: dict[str, Tensor] = {}
    size = 0
    for name, parameter in engine.weights.stepped.items():
        if name in gradients:
            part[name] = gradients[name]
        size += parameter.nbytes
        if size >= PART_BYTES:
            yield part
            part, size = {}, 0
    yield part
