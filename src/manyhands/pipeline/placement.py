"""Which worker holds which stage of which replica. Pure.

::

    layers   0 1 2 | 3 4 5 6 | 7 8        bounds (0, 3, 7, 9)
    stages     0        1       2         owners (worker 4, worker 0, worker 0,
               3        4       5                 worker 1, worker 2, worker 3)     the second replica's

When a worker is lost its stages go to a spare, else to the owner of a stage beside it: the cut stays, and so do
the bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from manyhands.errors import RunFailed
from manyhands.pipeline.graph import BATCH, Graph
from manyhands.pipeline.schedules.operations import Operation

Orders = dict[int, list[Operation]]
"""For each member what it runs, in order."""


@dataclass(frozen=True)
class Placement:
    """A model cut into stages and given to workers, once or in several replicas.

    Stage s of replica r is number r * `num_stages` + s.
    """

    graph: Graph
    bounds: tuple[int, ...]
    """The first layer of each stage, and the number of layers at the end."""
    owners: tuple[int, ...]
    """The member that holds each stage, replica after replica."""
    stages_per_worker: int = 1
    """How many stages each worker got at first: stage s went to worker s modulo the number of workers."""
    orders: dict[tuple[str, str, int], Orders] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )
    """What `orders` made for this placement before."""

    @property
    def num_stages(self) -> int:
        """Into how many stages the model is cut."""
        return len(self.bounds) - 1

    @property
    def num_replicas(self) -> int:
        """How many whole pipelines there are."""
        return len(self.owners) // self.num_stages

    @property
    def members(self) -> list[int]:
        """Who holds any stage, each once, in the order of their first one."""
        return list(dict.fromkeys(self.owners))

    def replica_of(self, stage: int) -> int:
        """The replica that a stage is of."""
        return stage // self.num_stages

    def stages_of(self, member: int) -> list[int]:
        """The stages that a member holds."""
        return [stage for stage, owner in enumerate(self.owners) if owner == member]

    def layers_of(self, stage: int) -> range:
        """The layers of a stage."""
        at = stage % self.num_stages
        return range(self.bounds[at], self.bounds[at + 1])

    def layers_held_by(self, member: int) -> list[int]:
        """The layers of a member's stages, each once."""
        return sorted({layer for stage in self.stages_of(member) for layer in self.layers_of(stage)})

    def stage_of(self, layer: int) -> int:
        """The stage that holds a layer, in the first replica."""
        return next(stage for stage, (_, end) in enumerate(pairwise(self.bounds)) if layer < end)

    def same_stages(self, stage: int) -> range:
        """The numbers of a stage in every replica, its own among them."""
        return range(stage % self.num_stages, len(self.owners), self.num_stages)

    def batch_edges_of(self, member: int) -> list[str]:
        """The edges of the batch that stages of a member take."""
        held = {stage % self.num_stages for stage in self.stages_of(member)}
        return [
            edge.name
            for edge in self.graph.edges
            if edge.producer == BATCH and any(self.stage_of(layer) in held for layer in edge.consumers)
        ]

    @property
    def last_stage(self) -> int:
        """The stage that makes the prediction, in the first replica."""
        return self.stage_of(
            next(edge.producer for edge in self.graph.edges if edge.name == self.graph.prediction)
        )

    def shares(self, num_micro_batches: int) -> list[range]:
        """The micro-batches of each replica, as even as can be; empty where there are too few."""
        size, larger = divmod(num_micro_batches, self.num_replicas)
        starts = [size * at + min(at, larger) for at in range(self.num_replicas + 1)]
        return [range(start, stop) for start, stop in pairwise(starts)]

    def span_of(self, member: int, num_micro_batches: int) -> range:
        """The micro-batches from the first to the last one that stages of a member see."""
        shares = self.shares(num_micro_batches)
        own = [one for stage in self.stages_of(member) if (one := shares[self.replica_of(stage)])]
        return range(own[0].start, own[-1].stop) if own else range(0)

    def pairs(self) -> list[tuple[int, int]]:
        """The workers that have something to say to each other, each pair once, the smaller number first."""
        groups = [[self.owners[stage] for stage in self.same_stages(at)] for at in range(self.num_stages)]
        for edge in self.graph.edges:
            # An edge's gradient goes from consumer to consumer before it reaches the producer.
            touched = [layer for layer in (edge.producer, *edge.consumers) if layer != BATCH]
            stages = {self.stage_of(layer) for layer in touched}
            groups += [
                [self.owners[first + stage] for stage in stages]
                for first in range(0, len(self.owners), self.num_stages)
            ]
        return sorted({(a, b) for owners in groups for a in owners for b in owners if a < b})


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
