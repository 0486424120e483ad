"""In which order each worker runs the operations of its stages: a schedule, brought to a placement. Pure.

::

    schedule  ─► a list a stage (or a worker), for each replica's own micro-batches
    merged    ─► a list a member: of several lists one that cannot wait for itself
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from manyhands.errors import RunFailed
from manyhands.pipeline.graph import BATCH
from manyhands.pipeline.placement import Orders, Placement
from manyhands.pipeline.schedules import Schedule, schedule_of
from manyhands.pipeline.schedules.operations import Operation


def orders(placement: Placement, kind: str, schedule: str, num_micro_batches: int) -> Orders:
    """The operations of every member for `kind` ("train", "forward" or "backward") over so many micro-batches.

    Replica r takes its share of them, under their own numbers. UsageError for a schedule that there is not.
    """
    key = (kind, schedule, num_micro_batches)
    if key not in placement.orders:
        lists: list[tuple[Operation, ...]] = []
        for replica, share in enumerate(placement.shares(num_micro_batches)):
            if share:
                first = replica * placement.num_stages
                lists += [
                    tuple(
                        Operation(one.kind, first + one.stage, share.start + one.micro_batch) for one in own
                    )
                    for own in _schedule(placement, kind, schedule, len(share))
                ]
        placement.orders[key] = merged(lists, placement)
    return placement.orders[key]


def _schedule(placement: Placement, kind: str, schedule: str, num_micro_batches: int) -> Schedule:
    """One replica's; a forward and its backward by hand are the two halves of GPipe."""
    num_stages, several = placement.num_stages, placement.stages_per_worker
    if kind != "train":
        whole = schedule_of("gpipe", num_stages, num_micro_batches)
        return tuple(tuple(one for one in own if one.kind == kind) for own in whole)
    if schedule == "interleaved":
        return schedule_of(schedule, num_stages // several, num_micro_batches, stages_per_worker=several)
    return schedule_of(schedule, num_stages, num_micro_batches)


def merged(schedule: Sequence[Sequence[Operation]], placement: Placement) -> Orders:
    """For each member the operations of all its stages, in one order. `schedule` has a list for each stage or worker.

    All lists are run through once, an operation as soon as what it needs has run: what comes out is an order in
    which everything can run, so that no worker waits for what stands behind in its own list.
    """
    forward_needs, backward_needs = _needs(placement)
    done: set[Operation] = set()
    places = [0] * len(schedule)
    order: Orders = {member: [] for member in placement.members}

    def can_run(operation: Operation) -> bool:
        kind, at = operation.kind, operation.micro_batch
        stage = operation.stage % placement.num_stages
        first = operation.stage - stage
        if kind == "forward":
            return all(Operation("forward", first + other, at) in done for other in forward_needs[stage])
        if kind == "weight_backward":
            return Operation("input_backward", operation.stage, at) in done
        return all(
            Operation("backward", first + other, at) in done
            or Operation("input_backward", first + other, at) in done
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
    forward: list[set[int]] = [set() for _ in range(placement.num_stages)]
    backward: list[set[int]] = [set() for _ in range(placement.num_stages)]
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
