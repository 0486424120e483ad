"""Where each value and each gradient goes next: a pure plan, made from the graph and where it is cut.

::

    stage 0           stage 1               stage 2                stage 3
    makes "a" ──┬───▶ takes it twice ─┐
                └────────────────────────▶ takes it ──────────────▶ takes it
                                                                        │  the last consumer starts
    gets the sum ◀── adds its own two ◀── adds its own ◀────────────────┘

**An edge's gradient is a chain.** Autograd adds up the gradients of a tensor in the order in which it runs the
backwards: last consumer first. Floating addition is not associative, so that only the same order gives the same
bits. The last consumer's stage therefore starts, each earlier one takes what comes as the FIRST term of its own
sum, and the producer's stage takes it before the consumers of its own. A sum made at the producer differs. A
parameter that several stages hold is such a chain too: its owner is the first stage that holds it.

Nothing here knows of tensors, of time, or of which machine holds a stage.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Final, Literal, NamedTuple

from manyhands.pipeline.graph import BATCH, Edge, Graph, Layer
from manyhands.pipeline.messages import BOSS

Part = Literal["value", "gradient", "tie", "weight"]
"""What is sent: an edge's value, its gradient so far, a shared parameter's gradient so far, its new value."""
TARGET: Final = "<target>"
"""The edge by which the loss's target comes in, from the boss to the stage that has the loss."""


class Key(NamedTuple):
    """What arrives at a stage, by name."""

    part: Part
    name: str
    """The edge's or the parameter's."""
    micro_batch: int
    """0 for what there is once a step."""


@dataclass(frozen=True)
class Shared:
    """A parameter that several layers hold."""

    name: str
    """What it is called: the name that its owner has it under."""
    aliases: tuple[str, ...]
    """Its other names."""
    layers: tuple[int, ...]
    """Who holds it, ascending."""


@dataclass(frozen=True)
class Routes:
    """What one stage receives and sends in a step."""

    stage: int
    layers: tuple[Layer, ...]
    values_in: tuple[str, ...]
    """Edges that it takes from another stage or from the batch."""
    values_out: Mapping[str, tuple[int, ...]]
    """Edges that it makes, and the stages (or `BOSS`) that take each."""
    with_gradient: frozenset[str]
    """All edges of the model that have a gradient."""
    gradients_in: tuple[str, ...]
    """Edges whose gradient so far comes from a later stage, or from the boss where that has the loss."""
    gradients_out: tuple[tuple[str, int], ...]
    """Edges whose gradient so far goes on, each with the stage that adds to it next."""
    prediction: str
    has_loss: bool
    """Whether the loss is taken here: then `prediction` is at hand, and `TARGET` is among `values_in`."""
    ties_in: tuple[str, ...] = ()
    """Shared parameters whose gradient so far comes from a later stage."""
    ties_out: tuple[tuple[str, int], ...] = ()
    """Shared parameters whose gradient goes on, each with the stage that adds to it next."""
    weights_in: tuple[str, ...] = ()
    """Shared parameters whose owner is another stage: it sends their new value after each step."""
    weights_out: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Shared parameters that it owns, and the stages that hold a copy."""


def shared_parameters(graph: Graph, names: Sequence[Collection[str]]) -> tuple[Shared, ...]:
    """The parameters that several layers hold; `names` are those of each layer's parameters."""
    called = {alias: group[0] for group in graph.ties for alias in group}
    holders: dict[str, list[int]] = {}
    for index, of_layer in enumerate(names):
        for name in dict.fromkeys(called.get(name, name) for name in of_layer):
            holders.setdefault(name, []).append(index)
    aliases = {group[0]: tuple(group[1:]) for group in graph.ties}
    return tuple(
        Shared(name, aliases.get(name, ()), tuple(layers))
        for name, layers in holders.items()
        if len(layers) > 1 or name in aliases
    )


def route(
    graph: Graph, bounds: Sequence[int], shared: Sequence[Shared] = (), *, loss_at_boss: bool = False
) -> tuple[Routes, ...]:
    """The routes of every stage. `bounds` are the first layer of each stage and, last, the number of layers.

    The loss is the last consumer of the prediction: on the last stage that has it at hand, or at the boss.
    """
    cut = _Cut(graph, tuple(bounds), loss_at_boss)
    return tuple(_of_stage(cut, stage, shared) for stage in range(len(bounds) - 1))


@dataclass(frozen=True)
class _Cut:
    graph: Graph
    bounds: tuple[int, ...]
    loss_at_boss: bool

    def stage_of(self, layer: int) -> int:
        return bisect_right(self.bounds, layer) - 1

    @cached_property
    def loss_stage(self) -> int:
        if self.loss_at_boss:
            return BOSS
        edge = self.graph.edge(self.graph.prediction)
        return max(self.stage_of(layer) for layer in (edge.producer, *edge.consumers))

    def producer(self, edge: Edge) -> int:
        return BOSS if edge.producer == BATCH else self.stage_of(edge.producer)

    def consumers(self, edge: Edge) -> tuple[int, ...]:
        """Stages that take the edge, in the order of their forwards; the boss, who comes after all, last."""
        stages = sorted({self.stage_of(layer) for layer in edge.consumers})
        if edge.name == self.graph.prediction and self.loss_stage not in stages:
            stages.append(self.loss_stage)
        return tuple(stages)

    def chain(self, edge: Edge) -> tuple[int, ...]:
        """The stages that the edge's gradient visits, from its last consumer to its producer."""
        if not edge.has_gradient:
            return ()
        producer = self.producer(edge)
        return (*reversed([stage for stage in self.consumers(edge) if stage != producer]), producer)


def _of_stage(cut: _Cut, stage: int, shared: Sequence[Shared]) -> Routes:
    edges = cut.graph.edges
    taken = [edge for edge in edges if cut.producer(edge) != stage and stage in cut.consumers(edge)]
    given = {
        edge.name: tuple(other for other in cut.consumers(edge) if other != stage)
        for edge in edges
        if cut.producer(edge) == stage
    }
    chains = {edge.name: cut.chain(edge) for edge in edges}
    held = {one.name: _holders(cut, one.layers) for one in shared}
    # A parameter's chain is walked like an edge's: its last holder first, its owner last.
    ties = {name: holders[::-1] for name, holders in held.items()}
    return Routes(
        stage=stage,
        layers=cut.graph.layers[cut.bounds[stage] : cut.bounds[stage + 1]],
        values_in=(*(edge.name for edge in taken), *((TARGET,) if stage == cut.loss_stage else ())),
        values_out={name: stages for name, stages in given.items() if stages},
        with_gradient=frozenset(edge.name for edge in edges if edge.has_gradient),
        gradients_in=_incoming(chains, stage),
        gradients_out=_outgoing(chains, stage),
        prediction=cut.graph.prediction,
        has_loss=stage == cut.loss_stage,
        ties_in=_incoming(ties, stage),
        ties_out=_outgoing(ties, stage),
        weights_in=tuple(name for name, holders in held.items() if stage in holders[1:]),
        weights_out={
            name: holders[1:] for name, holders in held.items() if holders[0] == stage and holders[1:]
        },
    )


def _holders(cut: _Cut, layers: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted({cut.stage_of(layer) for layer in layers}))


def _incoming(chains: Mapping[str, tuple[int, ...]], stage: int) -> tuple[str, ...]:
    return tuple(name for name, chain in chains.items() if stage in chain[1:])


def _outgoing(chains: Mapping[str, tuple[int, ...]], stage: int) -> tuple[tuple[str, int], ...]:
    return tuple((name, to) for name, chain in chains.items() for at, to in pairwise(chain) if at == stage)
