"""What a boss asks of its workers, whoever holds which stage: so that it can be asked again.

::

    snapshot ── forward ── backward ── step ── forward ── ... ── (a worker is lost)
        └───────────── placed anew: restored, and every command since asked again ─────┘

A command knows the model's edges and no worker; `parcels_for` turns it into messages once the stages are placed.
Commands that change nothing on a worker are not kept. Pure, but for the tensors that a batch holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from manyhands.pipeline import messages as m
from manyhands.pipeline.orders import orders
from manyhands.pipeline.placement import Placement
from manyhands.pipeline.stage.micro_batches import share

Parcel = tuple[m.FromBoss, Any]


@dataclass(frozen=True)
class Command:
    """One thing to do. `number` grows; the same command asked again has the same one."""

    number: int

    @property
    def changes_state(self) -> bool:
        """Whether it must be done again after a loss."""
        return True

    def parcels_for(self, placement: Placement, generation: int) -> dict[int, list[Parcel]]:
        """What to send to each member that has a part in it."""
        raise NotImplementedError


@dataclass(frozen=True)
class Pass(Command):
    """Operations over one batch: a forward, the backward of it, or both with the loss and the step.

    `inputs` are the batch's edges by name. `targets` and `loss` where the last stage makes the loss;
    `gradient` where the boss did. `pass_number` is what random numbers are keyed by, and joins a backward to
    its forward.
    """

    pass_number: int
    kind: str
    """`"forward"`, `"backward"` or `"train"`."""
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    targets: Any = None
    gradient: Tensor | None = None
    loss: str | None = None
    criterion: Mapping[str, Tensor] = field(default_factory=dict)
    """The loss's own tensors: class weights."""
    micro_batches: int = 1
    factors: tuple[float, ...] = (1.0,)
    """What each micro-batch's loss counts for."""
    scale: float = 1.0
    """What losses are multiplied by beside (fp16); a gradient that the boss has made is already."""
    schedule: str = "naive"
    update: int | None = None
    retains: bool = True

    @property
    def changes_state(self) -> bool:
        """A forward that nothing follows from leaves no trace."""
        return self.retains

    def parcels_for(self, placement: Placement, generation: int) -> dict[int, list[Parcel]]:
        """The operations of each member, with the edges of the batch that its layers take."""
        made = orders(placement, self.kind, self.schedule, self.micro_batches)
        parcels: dict[int, list[Parcel]] = {}
        for member in placement.members:
            span = placement.span_of(member, self.micro_batches)
            execute = m.Execute(
                generation,
                self.number,
                self.pass_number,
                [(one.kind, one.stage, one.micro_batch) for one in made[member]],
                span.start,
                len(span),
                list(self.factors),
                self.loss,
                self.update,
                self.retains,
                self.scale,
            )
            parcels[member] = [(execute, self._batch_of(member, placement, span) or None)]
        return parcels

    def _batch_of(self, member: int, placement: Placement, span: range) -> dict[str, Any]:
        """What a member is given of the batch: its micro-batches of the edges that its layers take."""
        body: dict[str, Any] = {}
        if self.kind != "backward":
            names = placement.batch_edges_of(member) if span else []
            body["inputs"] = {
                name: self._share(self.inputs[name], span, batched=placement.graph.edge(name).batched)
                for name in names
            }
        has_last = any(
            placement.owners[stage] == member for stage in placement.same_stages(placement.last_stage)
        )
        if has_last and span and self.targets is not None:
            body["targets"] = self._share(self.targets, span)
            body["criterion"] = dict(self.criterion)
        if has_last and span and self.gradient is not None:
            body["gradient"] = self._share(self.gradient, span)
        return body

    def _share(self, value: Tensor, span: range, *, batched: bool = True) -> Tensor:
        is_whole = len(span) == self.micro_batches or not batched
        return value if is_whole else share(value, self.micro_batches, span)


@dataclass(frozen=True)
class SetOptimizer(Command):
    """The optimizer of all stages."""

    kind: str
    options: str

    def parcels_for(self, placement: Placement, generation: int) -> dict[int, list[Parcel]]:
        """The same to everybody."""
        message = m.Optimize(generation, self.number, self.kind, self.options)
        return {member: [(message, None)] for member in placement.members}


@dataclass(frozen=True)
class Do(Command):
    """One of the short orders, to everybody. Those that only ask are not kept."""

    what: m.What
    value: float = 0.0

    @property
    def changes_state(self) -> bool:
        """Whether it is more than a question."""
        return self.what not in ("norms", "state", "clear", "statistics")

    def parcels_for(self, placement: Placement, generation: int) -> dict[int, list[Parcel]]:
        """The same to everybody."""
        message = m.Order(generation, self.number, self.what, self.value)
        return {member: [(message, None)] for member in placement.members}
