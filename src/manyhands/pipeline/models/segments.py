"""The nodes of a trace put into layers: one call of a torch layer and the operators behind it, each.

Which values go from one to the other is for the writing of recipes to find.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import fx, nn

from manyhands.errors import UsageError
from manyhands.pipeline.models.values import Value, Values, canonical


@dataclass
class Segment:
    """The nodes of one layer, in order; `name` is the called module's path."""

    index: int
    name: str = ""
    nodes: list[fx.Node] = field(default_factory=list)
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)


def segments(graph: fx.Graph, found: Values) -> list[Segment]:
    """The layers of a trace's train graph; operators before the first call are the first layer's."""
    made = [Segment(0)]
    for node in graph.nodes:
        if node.op == "call_module" and made[-1].name:
            made.append(Segment(len(made)))
        if node.op == "call_module":
            made[-1].name = str(node.target)
        if _is_placed(node, found):
            made[-1].nodes.append(node)
    return made


def _is_placed(node: fx.Node, found: Values) -> bool:
    """Whether a node computes a tensor: numbers are found again where they are used, and so are parameters, but for
    those that a layer takes as they are.
    """
    if node.op == "get_attr":
        return any(user.op in ("call_module", "output") for user in node.users)
    computes = node.op in ("call_module", "call_function", "call_method") and found.is_tensors(node)
    return computes and canonical(Value(node), found).node is node


def check_calls(called: Sequence[Segment], layers: Mapping[str, nn.Module]) -> None:
    """UsageError where a layer with buffers is called twice; `layers` are by path."""
    callers: dict[str, Segment] = {}
    for segment in called:
        if segment.name in callers and list(layers[segment.name].buffers()):
            raise UsageError(
                f"{segment.name} is called twice, as layers {callers[segment.name].index} and {segment.index}, and has "
                "buffers, which two machines cannot both change: give each call a module of its own"
            )
        callers[segment.name] = segment
