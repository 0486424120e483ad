"""Where a model is cut when a run begins: the user's cuts, or those that make the slowest stage fastest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from torch import nn

from manyhands.pipeline.costs import estimate
from manyhands.pipeline.crew import Member
from manyhands.pipeline.graph import Graph
from manyhands.pipeline.placement import Placement
from manyhands.pipeline.plan import Load, Machine, partition

_SAMPLES: Final = 32
_ADAM_STATES: Final = 2
_BYTES_PER_SECOND: Final = 1e9
"""What two machines exchange, encrypted, where nobody has measured it."""


def cut(
    graph: Graph, built: Sequence[nn.Module], members: Sequence[Member], cuts: Sequence[int] | None
) -> Placement:
    """One stage a worker, in the order of their arrival; `built` are the layers on the meta device.

    UsageError where there are fewer layers than workers, cuts that are none, or too little memory, with a table.
    """
    num = len(members)
    machines = [Machine(member.title, member.hello.memory_bytes) for member in members]
    # 1F1B holds one micro-batch fewer on each later stage.
    load = Load(_SAMPLES, tuple(range(num, 0, -1)), _ADAM_STATES, _BYTES_PER_SECOND)
    chosen = partition(graph, estimate(graph, built, _SAMPLES, num), machines, load, cuts)
    bounds = (0, *chosen.cuts, len(graph.layers))
    return Placement(graph, bounds, tuple(member.number for member in members))
