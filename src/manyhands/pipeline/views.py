"""What a boss can tell of its pipeline: rows for people and programs. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from manyhands.pipeline.graph import BATCH
from manyhands.pipeline.members import Member
from manyhands.pipeline.outcome import Outcome
from manyhands.pipeline.placement import Placement


def dependencies(placement: Placement) -> dict[str, list[int]]:
    """The edges that pass over a cut, each with the stages that take it; the batch's own are not among them."""
    found: dict[str, list[int]] = {}
    for edge in placement.graph.edges:
        if edge.producer == BATCH:
            continue
        stages = {placement.stage_of(layer) for layer in edge.consumers} - {placement.stage_of(edge.producer)}
        if stages:
            found[edge.name] = sorted(stages)
    return found


def layers(
    placement: Placement, members: Sequence[Member], num_parameters: Sequence[int]
) -> list[dict[str, Any]]:
    """One row a layer: its number and name, who holds it in each replica, its parameters, what it takes and makes."""
    return [
        {
            "layer": layer.index,
            "name": layer.name,
            "worker": ", ".join(
                members[placement.owners[stage]].title
                for stage in placement.same_stages(placement.stage_of(layer.index))
            ),
            "parameters": num_parameters[layer.index],
            "takes": list(layer.inputs),
            "makes": list(layer.outputs),
        }
        for layer in placement.graph.layers
    ]


def memory(placement: Placement, members: Sequence[Member], outcome: Outcome) -> list[dict[str, Any]]:
    """One row a worker: who, its layers, and the bytes that it answered with."""
    rows = []
    for member in placement.members:
        held = placement.layers_held_by(member)
        whole = {name: int(number) for name, number in outcome.numbers[member].items()}
        rows.append({"worker": members[member].title, "layers": held, **whole})
    return rows
