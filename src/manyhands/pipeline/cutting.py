"""Where a model is cut when a run begins: the user's cuts, or those that make the slowest stage fastest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Final

from manyhands.errors import UsageError
from manyhands.pipeline.graph import Graph
from manyhands.pipeline.members import Member
from manyhands.pipeline.placement import Placement
from manyhands.pipeline.plan import partition
from manyhands.pipeline.schedules import schedule_of
from manyhands.pipeline.simulator import simulate
from manyhands.pipeline.stagecosts import Cost, Load, Machine

SAMPLES: Final = 32
"""In the micro-batch that layers are measured over."""
_MICRO_BATCHES_PER_WORKER: Final = 4
"""Enough that more of them would not be held at once."""
_ADAM_STATES: Final = 2
_BYTES_PER_SECOND: Final = 1e9
"""What two machines exchange, encrypted, where nobody has measured it."""


def cut(
    graph: Graph,
    costs: Sequence[Cost],
    members: Sequence[Member],
    cuts: Sequence[int] | None,
    replicas: int = 1,
    stages_per_worker: int = 1,
) -> Placement:
    """So many stages a worker, in the order of their arrival, the same cut in each replica.

    `costs` have one time a member. `cuts` that make several stages a worker ask for as many. UsageError where there
    are fewer layers than stages, cuts that are none, workers that do not go evenly into replicas, or too little
    memory, with a table.
    """
    groups = _replicas(members, replicas)
    num_workers = len(groups[0])
    if cuts is not None and (len(cuts) + 1) % num_workers == 0:
        stages_per_worker = (len(cuts) + 1) // num_workers
    num_stages = num_workers * stages_per_worker
    if stages_per_worker > 1 and num_stages > len(graph.layers):
        raise UsageError(
            f"{stages_per_worker} stages on each of {num_workers} workers are {num_stages}, and the model has "
            f'{len(graph.layers)} layers: take schedule="1f1b", or fewer workers'
        )
    machines = [_machine(group, stages_per_worker) for group in zip(*groups, strict=True)]
    load = Load(SAMPLES, _held(num_workers, stages_per_worker), _ADAM_STATES, _BYTES_PER_SECOND)
    shared = [_of_slowest(cost, num_workers, stages_per_worker) for cost in costs]
    chosen = partition(graph, shared, machines * stages_per_worker, load, cuts)
    owners = [member.number for group in groups for _ in range(stages_per_worker) for member in group]
    return Placement(graph, (0, *chosen.cuts, len(graph.layers)), tuple(owners), stages_per_worker)


def _replicas(members: Sequence[Member], replicas: int) -> list[list[Member]]:
    if not 1 <= replicas <= len(members) or len(members) % replicas:
        raise UsageError(
            f"replicas={replicas} of a pipeline cannot be made of {len(members)} workers: each takes as many, so use "
            f"a number that divides {len(members)}, or another number of workers"
        )
    waiting = iter(members)
    size = len(members) // replicas
    return [list(islice(waiting, size)) for _ in range(replicas)]


def _machine(group: Sequence[Member], stages: int) -> Machine:
    """The workers that hold a stage in each replica, as one: with the memory that all have, for each of its stages."""
    title = " and ".join(member.title for member in group)
    return Machine(title, min(member.hello.memory_bytes for member in group) // stages)


def _of_slowest(cost: Cost, num_workers: int, stages_per_worker: int) -> Cost:
    """The time on the slowest worker of each group, once for each stage that the group gets."""
    by_worker = tuple(max(cost.seconds[at::num_workers]) for at in range(num_workers))
    return replace(cost, seconds=by_worker * stages_per_worker)


def _held(num_workers: int, stages_per_worker: int) -> tuple[int, ...]:
    """How many micro-batches each stage holds at most."""
    name = "1f1b" if stages_per_worker == 1 else "interleaved"
    schedule = schedule_of(
        name, num_workers, _MICRO_BATCHES_PER_WORKER * num_workers, stages_per_worker=stages_per_worker
    )
    peaks = simulate(schedule).peak_activations
    return tuple(-(-peak // stages_per_worker) for peak in peaks) * stages_per_worker
