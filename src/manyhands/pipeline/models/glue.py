"""The operators between two layers of a trace, as a small program.

They are cut out of both modes' graphs and captured as a layer without code: tensors from elsewhere come in, sizes are
taken of them again, parameters that the model uses directly stand in with their names.
"""

from __future__ import annotations

import operator
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import torch
from torch import Tensor, fx, nn

from manyhands.errors import CaptureFailed, UsageError
from manyhands.pipeline.models.shapes import BATCH_SIZES
from manyhands.pipeline.models.tracing import WAYS_OUT, Traced
from manyhands.pipeline.models.values import Value, Values, canonical
from manyhands.programs.blame import line_of_node
from manyhands.programs.capture import capture
from manyhands.programs.format import Program, TensorRow, encode
from manyhands.programs.tracing import WAY_OUT

_LOW, _HIGH = BATCH_SIZES
_OWN = " in model (_Module)"
"""What capture calls a module of ours."""


@dataclass(frozen=True)
class Glue:
    """Consecutive operators: the values that they take, and those that something else takes of them."""

    nodes: Sequence[fx.Node]
    inputs: Sequence[Value]
    outputs: Sequence[Value]


def taken(nodes: Sequence[fx.Node], values: Values, main: Value) -> list[Value]:
    """The values from elsewhere that a program of `nodes` takes, each once.

    `main` is among them where a size depends on the batch and no other tensor tells it, or nothing else comes in.
    """
    own = set(nodes)
    found: dict[Value, None] = {}
    varies = False
    for node in nodes:
        for source in node.all_input_nodes:
            if source.op == "get_attr" or canonical(Value(source), values).node in own:
                continue
            found |= dict.fromkeys(values.of(source))
            varies |= not values.is_tensors(source) and values.low[source] != values.high[source]
    if not found or (varies and not any(values.flow(value).batched for value in found)):
        found[main] = None
    return list(found)


class Captures:
    """Programs of one trace. Models repeat themselves: what differs in names alone is captured once."""

    def __init__(self, traced: Traced, values: Values) -> None:
        self._traced = traced
        self._values = values
        self._twins = dict(zip(traced.eval.nodes, traced.train.nodes, strict=True))
        self._eval_nodes = {train: evaluated for evaluated, train in self._twins.items()}
        self._known: dict[Hashable, Program] = {}

    def program(self, glue: Glue) -> bytes:
        """The encoded program of `glue`. UsageError with the line that cannot travel."""
        names = _attributes(glue)
        local = {name: f"a{at}" for at, name in enumerate(names)}
        tensors = {local[name]: _attribute(self._traced, name) for name in names}
        same = {node: node for node in self._traced.train.nodes}
        graphs = {
            True: _Cut(glue, self._values, same, local).graph(glue.nodes),
            False: _Cut(glue, self._values, self._twins, local).graph(
                [self._eval_nodes[node] for node in glue.nodes]
            ),
        }
        flows = [self._values.flow(value) for value in glue.inputs]
        key = (
            tuple(_text(graph) for graph in graphs.values()),
            tuple((flow.low.shape, flow.high.shape, flow.low.dtype) for flow in flows),
            tuple(_kind(tensor) for tensor in tensors.values()),
        )
        if key not in self._known:
            batches = [tuple(_stand_in(one) for one in inputs) for inputs in zip(*flows, strict=True)]
            self._known[key] = self._capture(glue, _Module(graphs, tensors), batches)
        return encode(_renamed(self._known[key], {short: name for name, short in local.items()}))

    def _capture(self, glue: Glue, module: _Module, batches: Sequence[tuple[Tensor, ...]]) -> Program:
        try:
            return capture(module, None, batches).program
        except CaptureFailed as error:
            reason = str(error).partition(WAY_OUT)[0].rstrip(" ,:").removesuffix(". Rewrite that line")
            raise UsageError(
                f"{type(self._traced.root).__name__} cannot travel as data, in the operators that begin"
                f"{line_of_node(glue.nodes[0])}: {reason.replace(_OWN, '')}. {WAYS_OUT}"
            ) from error


class _Module(nn.Module):
    """Cut-out operators over the parameters and buffers that they use, which stand in by shape."""

    def __init__(self, graphs: Mapping[bool, fx.Graph], tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._graphs = graphs
        for name, tensor in tensors.items():
            if isinstance(tensor, nn.Parameter):
                stand_in = nn.Parameter(_stand_in(tensor), requires_grad=tensor.requires_grad)
                self.register_parameter(name, stand_in)
            elif isinstance(tensor, nn.Buffer):
                self.register_buffer(name, _stand_in(tensor))
            else:
                setattr(self, name, tensor)

    def forward(self, *inputs: Tensor) -> Any:
        return fx.Interpreter(self, graph=self._graphs[self.training]).run(
            *inputs, enable_io_processing=False
        )


def _attributes(glue: Glue) -> list[str]:
    nodes = [one for node in glue.nodes for one in (node, *node.all_input_nodes) if one.op == "get_attr"]
    return list(dict.fromkeys(str(node.target) for node in nodes))


def _attribute(traced: Traced, name: str) -> Tensor:
    """A parameter, a buffer as such, or a tensor that forward made or holds: its values are the program's."""
    holder, _, last = name.rpartition(".")
    found = traced.tensors[name]
    return nn.Buffer(found) if last in traced.root.get_submodule(holder)._buffers else found


def _kind(tensor: Tensor) -> Hashable:
    if isinstance(tensor, nn.Parameter | nn.Buffer):
        return type(tensor), tensor.shape, tensor.dtype, tensor.requires_grad
    return id(tensor)


def _stand_in(like: Tensor) -> Tensor:
    """Zeros, whose values nothing depends on; masks are all true."""
    make = torch.ones if like.dtype == torch.bool else torch.zeros
    return make(like.shape, dtype=like.dtype)


def _text(graph: fx.Graph) -> Hashable:
    """What `graph` computes, whatever its nodes are called."""
    names = {node: f"%{at}" for at, node in enumerate(graph.nodes)}
    return tuple(
        (
            node.op,
            "" if node.op == "placeholder" else node.target,
            str(fx.map_arg((node.args, node.kwargs), lambda one: names[one])),
        )
        for node in graph.nodes
    )


def _renamed(program: Program, names: Mapping[str, str]) -> Program:
    def renamed(rows: Sequence[TensorRow]) -> tuple[TensorRow, ...]:
        return tuple(msgspec.structs.replace(row, name=names[row.name]) for row in rows)

    return msgspec.structs.replace(
        program, parameters=renamed(program.parameters), buffers=renamed(program.buffers)
    )


class _Cut:
    """A graph of its own for some nodes.

    `twins` maps the nodes of the mode to those that `values` are of, `attributes` the names of parameters to new ones.
    """

    def __init__(
        self, glue: Glue, values: Values, twins: Mapping[fx.Node, fx.Node], attributes: Mapping[str, str]
    ) -> None:
        self._attributes = attributes
        self._glue = glue
        self._values = values
        self._twins = twins
        self._graph = fx.Graph()
        self._inputs = {value: self._graph.placeholder(f"input_{at}") for at, value in enumerate(glue.inputs)}
        self._made: dict[fx.Node, fx.Node] = {}

    def graph(self, nodes: Sequence[fx.Node]) -> fx.Graph:
        """The graph of `nodes`, which are of the mode."""
        for node in nodes:
            if node.op == "get_attr":
                self._argument(node)
            else:
                self._made[self._twins[node]] = self._graph.node_copy(node, self._argument)
        self._graph.output(tuple(self._value(value) for value in self._glue.outputs))
        return self._graph

    def _argument(self, node: fx.Node) -> Any:
        source = self._twins[node]
        if source in self._made:
            return self._made[source]
        if source.op == "get_attr":
            self._made[source] = self._graph.create_node("get_attr", self._attributes[str(source.target)])
            return self._made[source]
        made = canonical(Value(source), self._values)
        if made.node in self._made:
            return self._value(made)
        return self._outside(self._values.low[source], self._values.high[source], made)

    def _value(self, value: Value) -> Any:
        if value in self._inputs:
            return self._inputs[value]
        found: Any = self._made[value.node]
        for key in value.path:
            found = self._graph.call_function(operator.getitem, (found, key))
        return found

    def _outside(self, low: Any, high: Any, value: Value) -> Any:
        """What comes from elsewhere: tensors by their inputs, numbers as they are or as sizes."""
        if isinstance(low, Tensor):
            return self._inputs[value]
        if isinstance(low, tuple | list):
            return tuple(
                self._outside(one, other, Value(value.node, (*value.path, at)))
                for at, (one, other) in enumerate(zip(low, high, strict=True))
            )
        if isinstance(low, torch.device):
            return torch.device("cpu")
        return low if low == high else self._size(low, high)

    def _size(self, low: Any, high: Any) -> Any:
        for value, node in self._inputs.items():
            flow = self._values.flow(value)
            for dim, (one, other) in enumerate(zip(flow.low.shape, flow.high.shape, strict=True)):
                if one != other and isinstance(low, int) and low % one == 0 and low // one * other == high:
                    size = self._graph.call_method("size", (node, dim))
                    return size if low == one else self._graph.call_function(operator.mul, (size, low // one))
        raise UsageError(
            f"a number in forward{line_of_node(self._glue.nodes[0])} is {low} for {_LOW} samples and {high} for "
            f"{_HIGH}: only multiples of the batch's size may be computed with"
        )
