"""Which worker holds which stage, and in which order each runs its operations. Pure.

::

    layers   0 1 2 | 3 4 5 6 | 7 8        bounds (0, 3, 7, 9)
    stages     0        1       2         owners (worker 4, worker 0, worker 0)

When a worker is lost its stages go to a spare, else to the owner of a stage beside it: the cut stays, and so do
the bits. A worker with several stages runs their operations in one order that cannot wait for itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from manyhands.errors import RunFailed
from manyhands.pipeline.graph import BATCH, Graph
from manyhands.pipeline.schedules.operations import Operation, Schedule


@dataclass(frozen=True)
class Placement:
    """A model cut into stages and given to workers."""

    graph: Graph
    bounds: tuple[int, ...]
    """The first layer of each stage, and the number of layers at the end."""
    owners: tuple[int, ...]
    """The member that holds each stage."""

    @property
    def num_stages(self) -> int:
        """How many stages there are."""
        return len(self.owners)

    @property
    def members(self) -> list[int]:
        """Who holds any stage, each once, in the order of their first one."""
        return list(dict.fromkeys(self.owners))

    def stages_of(self, member: int) -> list[int]:
        """The stages that a member holds."""
        return [stage for stage, owner in enumerate(self.owners) if owner == member]

    def layers_of(self, stage: int) -> range:
        """The layers of a stage."""
        return range(self.bounds[stage], self.bounds[stage + 1])

    def stage_of(self, layer: int) -> int:
        """The stage that holds a layer."""
        return next(stage for stage, (_, end) in enumerate(pairwise(self.bounds)) if layer < end)

    def batch_edges_of(self, member: int) -> list[str]:
        """The edges of the batch that stages of a member take."""
        return [
            edge.name
            for edge in self.graph.edges
            if edge.producer == BATCH
            and any(self.owners[self.stage_of(layer)] == member for layer in edge.consumers)
        ]

    @property
    def last_stage(self) -> int:
        """The stage that makes the prediction."""
        return self.stage_of(
            next(edge.producer for edge in self.graph.edges if edge.name == self.graph.prediction)
        )

    def pairs(self) -> list[tuple[int, int]]:
        """The workers that have something to say to each other, each pair once, the smaller number first."""
        pairs: set[tuple[int, int]] = set()
        for edge in self.graph.edges:
            # An edge's gradient goes from consumer to consumer before it reaches the producer.
            touched = [layer for layer in (edge.producer, *edge.consumers) if layer != BATCH]
            owners = {self.owners[self.stage_of(layer)] for layer in touched}
            pairs |= {(a, b) for a in owners for b in owners if a < b}
        return sorted(pairs)


def replaced(owners: Sequence[int], alive: Iterable[int]) -> tuple[int, ...]:
    """New owners after losses: spares take over whole workers; without spares, neighbours take single stages.

    `alive` are all members that are here, in the order in which they came. RunFailed where nobody is.
    """
    here = list(alive)
    if not here:
        raise RunFailed("no worker is left")
    spares = [member for member in here if member not in owners]
    heirs: dict[int, int] = {}
    for owner in dict.fromkeys(owners):
        if owner not in here and spares:
            heirs[owner] = spares.pop(0)
    placed = [heirs.get(owner, owner) for owner in owners]
    return tuple(_nearest(placed, stage, set(here)) for stage in range(len(placed)))


def _nearest(placed: Sequence[int], stage: int, here: set[int]) -> int:
    """The owner of the nearest stage that has a living one: the stage's own, before its left, before its right."""
    by_distance = sorted(range(len(placed)), key=lambda other: (abs(other - stage), other))
    return next(placed[other] for other in by_distance if placed[other] in here)


def merged(schedule: Schedule, placement: Placement) -> dict[int, list[Operation]]:
    """For each member the operations of all its stages, in one order. `schedule` has a list for each stage.

    All lists are run through once, an operation as soon as what it needs has run: what comes out is an order in
    which everything can run, so that no worker waits for what stands behind in its own list.
    """
    forward_needs, backward_needs = _needs(placement)
    done: set[Operation] = set()
    places = [0] * len(schedule)
    order: dict[int, list[Operation]] = {member: [] for member in placement.members}

    def can_run(operation: Operation) -> bool:
        kind, stage, at = operation.kind, operation.stage, operation.micro_batch
        if kind == "forward":
            return all(Operation("forward", other, at) in done for other in forward_needs[stage])
        if kind == "weight_backward":
            return Operation("input_backward", stage, at) in done
        return all(
            Operation("backward", other, at) in done or Operation("input_backward", other, at) in done
            for other in backward_needs[stage]
        )

    while any(place < len(operations) for place, operations in zip(places, schedule, strict=True)):
        before = list(places)
        for number, operations in enumerate(schedule):
            while places[number] < len(operations) and can_run(operations[places[number]]):
                operation = operations[places[number]]
                done.add(operation)
                order[placement.owners[operation.stage]].append(operation)
                places[number] += 1
        if places == before:
            raise RunFailed("this schedule waits for itself: report it, with the model's cuts")
    return order


def _needs(placement: Placement) -> tuple[list[set[int]], list[set[int]]]:
    """For each stage, the stages whose forward its forward waits for, and the same of the backwards.

    An edge's gradient goes from its last consumer to each earlier one and then to the producer.
    """
    forward: list[set[int]] = [set() for _ in placement.owners]
    backward: list[set[int]] = [set() for _ in placement.owners]
    for edge in placement.graph.edges:
        chain = sorted({placement.stage_of(layer) for layer in edge.consumers})
        if edge.producer != BATCH:
            producer = placement.stage_of(edge.producer)
            for consumer in chain:
                forward[consumer] |= {producer} - {consumer}
            chain = [producer, *(stage for stage in chain if stage != producer)]
        if edge.has_gradient:
            for earlier, later in pairwise(chain):
                backward[earlier].add(later)
    return forward, backward
