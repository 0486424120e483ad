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
from manyhands.pipeline.placement import Placement, merged
from manyhands.pipeline.schedules import Schedule, schedule_of

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
    schedule: str = "naive"
    update: int | None = None
    retains: bool = True

    @property
    def changes_state(self) -> bool:
        """A forward that nothing follows from leaves no trace."""
        return self.retains

    def parcels_for(self, placement: Placement, generation: int) -> dict[int, list[Parcel]]:
        """The operations of each member, with the edges of the batch that its layers take."""
        operations = merged(_schedule(self, placement.num_stages), placement)
        last = placement.owners[placement.last_stage]
        parcels: dict[int, list[Parcel]] = {}
        for member in placement.members:
            body: dict[str, Any] = {}
            if self.kind != "backward":
                body["inputs"] = {name: self.inputs[name] for name in placement.batch_edges_of(member)}
            if member == last and self.targets is not None:
                body["targets"] = self.targets
                body["criterion"] = dict(self.criterion)
            if member == last and self.gradient is not None:
                body["gradient"] = self.gradient
            execute = m.Execute(
                generation,
                self.number,
                self.pass_number,
                [(one.kind, one.stage, one.micro_batch) for one in operations[member]],
                self.micro_batches,
                self.loss,
                self.update,
                self.retains,
            )
            parcels[member] = [(execute, body or None)]
        return parcels


def _schedule(one: Pass, num_stages: int) -> Schedule:
    """For each stage its operations; a forward and its backward by hand are the two halves of GPipe."""
    if one.kind == "train":
        return schedule_of(one.schedule, num_stages, one.micro_batches)
    kind = "forward" if one.kind == "forward" else "backward"
    whole = schedule_of("gpipe", num_stages, one.micro_batches)
    return tuple(tuple(operation for operation in own if operation.kind == kind) for own in whole)


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
