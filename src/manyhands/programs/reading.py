"""Questions about a traced graph: what is used, what writes where, where a node was written.

Pure; knows ``torch.fx`` and nothing of programs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch._ops import HigherOrderOperator, OpOverload

from manyhands.programs.blame import line_of_node


def wanted(module: fx.GraphModule) -> set[str]:
    """Names of the nodes that the outputs, the buffers or the random numbers of `module` need."""
    names: set[str] = set()
    for node in reversed(module.graph.nodes):
        if node.op == "output" or node.name in names or _acts(node, module):
            names.add(node.name)
            names.update(source.name for source in node.all_input_nodes)
    return names


def region_of(node: fx.Node, module: fx.GraphModule) -> fx.GraphModule | None:
    """The graph that a higher-order node runs; None where it is no such node."""
    graph = graph_argument(node)
    if graph is None or not isinstance(node.target, HigherOrderOperator):
        return None
    found = module.get_submodule(str(graph.target))
    return found if isinstance(found, fx.GraphModule) else None


def graph_argument(node: fx.Node) -> fx.Node | None:
    """The argument of a higher-order node that is the graph it runs; its own arguments come after."""
    return next((part for part in node.all_input_nodes if part.op == "get_attr"), None)


def source_of(node: fx.Node) -> fx.Node:
    """The first argument of a node that takes a tensor first."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


def bound(node: fx.Node) -> dict[str, Any]:
    """The arguments of an operator's node by the names of its schema."""
    assert isinstance(node.target, OpOverload)
    names = [parameter.name for parameter in node.target._schema.arguments]
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def listed(value: Any) -> Sequence[Any]:
    """A list or tuple as it is, anything else as a list of one."""
    return value if isinstance(value, list | tuple) else [value]


def blamed(region: fx.GraphModule) -> str:
    """Where the first operator of `region` was written."""
    return next((line_of_node(node) for node in region.graph.nodes if node.op == "call_function"), "")


def writes_to(user: fx.Node, source: fx.Node) -> bool:
    """Whether `user` is an operator that changes the values of `source` in place."""
    if not isinstance(user.target, OpOverload) or user.target == torch.ops.aten.detach_.default:
        return False
    written = {
        parameter.name
        for parameter in user.target._schema.arguments
        if parameter.alias_info is not None and parameter.alias_info.is_write
    }
    return any(value is source for name, value in bound(user).items() if name in written)


def is_written(node: fx.Node) -> bool:
    """Whether anything may change `node` in place, under its own name or through a view of it."""
    return any(writes_to(user, node) or (_may_be_view(user) and is_written(user)) for user in node.users)


def _may_be_view(node: fx.Node) -> bool:
    if not isinstance(node.target, OpOverload):
        return False
    aliases = any(returned.alias_info is not None for returned in node.target._schema.returns)
    return aliases or torch.Tag.maybe_aliasing_or_mutating in node.target.tags


def _acts(node: fx.Node, module: fx.GraphModule) -> bool:
    """Whether leaving `node` out would be felt: it writes in place or draws random numbers."""
    if isinstance(node.target, OpOverload):
        return node.target._schema.is_mutable or torch.Tag.nondeterministic_seeded in node.target.tags
    region = region_of(node, module)
    return region is not None and any(_acts(inner, region) for inner in region.graph.nodes)
