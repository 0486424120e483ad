"""A module read by tracing: cut at each layer of torch that it calls, its edges found by who uses what.

::

    forward     x ─▶ conv1 ─▶ norm1 ─▶ relu ─▶ conv2 ─▶ norm2 ─▶ add ─▶ relu ─▶ flatten ─▶ head
    layers      0 conv1    1 norm1, relu     2 conv2   3 norm2, add, relu, flatten       4 head

A layer is one call of a torch layer and the operators behind it, up to the next call; operators before the first call
are the first layer's. A value that a later layer uses is an edge, whatever lies between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import torch
from torch import Tensor, fx, nn

from manyhands.errors import UsageError
from manyhands.pipeline.graph import BATCH, Edge, Graph, Layer
from manyhands.pipeline.models import tracing, values
from manyhands.pipeline.models.glue import Captures, Glue, taken
from manyhands.pipeline.models.proof import prove
from manyhands.pipeline.models.reading import Example, Reading
from manyhands.pipeline.models.segments import Segment, check_calls, segments
from manyhands.pipeline.models.values import Value, Values, canonical, paths
from manyhands.pipeline.recipes.build import build
from manyhands.pipeline.recipes.describe import describe
from manyhands.pipeline.recipes.format import (
    Argument,
    Keyword,
    ProgramPart,
    Recipe,
    TorchPart,
)
from manyhands.pipeline.recipes.format import Value as Ref
from manyhands.programs.blame import line_of_node


def read_module(module: nn.Module, example: Example) -> Reading:
    """The reading of any fx-traceable module, `nn.Sequential` included."""
    traced = tracing.trace(module, example.extra)
    parts = {
        str(node.target): describe(module.get_submodule(str(node.target)), str(node.target))
        for node in traced.train.nodes
        if node.op == "call_module"
    }
    with torch.device("meta"):
        stand_ins = {path: build(Recipe(1, (part,), (1,))).parts[0] for path, part in parts.items()}
    found = values.run(traced, stand_ins, example)
    cut = segments(traced.train, found)
    check_calls(cut, stand_ins)
    writing = _Writing(traced, found, parts, cut)
    recipes = tuple(writing.recipe(segment) for segment in cut)
    reading = Reading(writing.graph(module), recipes, _Weights(module, recipes))
    prove(module, reading, example)
    return reading


class _Writing:
    """Segments to recipes, layers and edges."""

    def __init__(
        self,
        traced: tracing.Traced,
        found: Values,
        parts: Mapping[str, TorchPart],
        cut: Sequence[Segment],
    ) -> None:
        self._traced = traced
        self._found = found
        self._parts = parts
        self._segments = cut
        self._captures = Captures(traced, found)
        self._main = Value(next(node for node in traced.train.nodes if node.op == "placeholder"))
        self._prediction = self._returned()
        self._producer = {node: segment.index for segment in cut for node in segment.nodes}
        for segment in cut:
            self._connect(segment)

    # ---- who takes what ---------------------------------------------------------------------------------

    def _connect(self, segment: Segment) -> None:
        own = set(segment.nodes)
        takes = [value for run in self._runs(segment) for value in self._taken(run)]
        segment.inputs = [value for value in dict.fromkeys(takes) if value.node not in own]
        for value in segment.inputs:
            if value.node in self._producer:
                outputs = self._segments[self._producer[value.node]].outputs
                outputs.extend([value] if value not in outputs else [])

    def _runs(self, segment: Segment) -> list[list[fx.Node]]:
        """The nodes of each part: a call of a layer by itself, operators together."""
        runs: list[list[fx.Node]] = []
        for node in segment.nodes:
            if node.op == "call_module" or not runs or runs[-1][0].op == "call_module":
                runs.append([])
            runs[-1].append(node)
        return runs

    def _taken(self, run: Sequence[fx.Node]) -> list[Value]:
        if run[0].op == "call_module":
            return [value for source in run[0].all_input_nodes for value in self._found.of(source)]
        return taken(run, self._found, self._main)

    def _given(self, run: Sequence[fx.Node]) -> list[Value]:
        """All that a call gives; of operators what others take."""
        if run[0].op == "call_module":
            return [Value(run[0], path) for path in paths(self._found.low[run[0]])]
        own = set(run)
        outside = dict.fromkeys(
            value
            for node in run
            for user in self._traced.train.nodes
            if user not in own and _is_user(user)
            for source in user.all_input_nodes
            for value in self._found.of(source)
            if value.node is node
        )
        return list(outside) or [Value(run[-1], path) for path in paths(self._found.low[run[-1]])]

    def _returned(self) -> Value:
        output = next(node for node in self._traced.train.nodes if node.op == "output")
        made = [value for source in output.all_input_nodes for value in self._found.of(source)]
        if len(made) != 1 or not isinstance(output.args[0], fx.Node):
            raise UsageError(
                f"forward of {type(self._traced.root).__name__} returns {len(made)} tensors in a "
                f"{type(output.args[0]).__name__}; a pipeline's prediction is one tensor, so return that"
            )
        return made[0]

    # ---- recipes ----------------------------------------------------------------------------------------

    def recipe(self, segment: Segment) -> Recipe:
        """How the layer of `segment` is built; its first output, if nobody takes any, is what it ends with."""
        numbers = {value: at for at, value in enumerate(segment.inputs)}
        parts: list[TorchPart | ProgramPart] = []
        for run in self._runs(segment):
            given = self._given(run)
            parts.append(self._part(run, given, numbers))
            numbers |= {value: len(numbers) + at for at, value in enumerate(given)}
        if self._prediction.node in segment.nodes and self._prediction not in segment.outputs:
            segment.outputs.append(self._prediction)
        if not segment.outputs:
            segment.outputs.append(given[0])
        return Recipe(len(segment.inputs), tuple(parts), tuple(numbers[value] for value in segment.outputs))

    def _part(
        self, run: Sequence[fx.Node], given: Sequence[Value], numbers: Mapping[Value, int]
    ) -> TorchPart | ProgramPart:
        if run[0].op != "call_module":
            takes = self._taken(run)
            program = self._captures.program(Glue(run, takes, given))
            return ProgramPart(program, tuple(numbers[value] for value in takes), len(given))
        node = run[0]
        return msgspec.structs.replace(
            self._parts[str(node.target)],
            args=tuple(self._argument(node, one, numbers) for one in node.args),
            keywords=tuple(
                Keyword(name, self._argument(node, one, numbers)) for name, one in node.kwargs.items()
            ),
            results=len(given),
        )

    def _argument(self, node: fx.Node, given: Any, numbers: Mapping[Value, int]) -> Argument:
        if isinstance(given, fx.Node) and isinstance(self._found.low[given], Tensor):
            return Ref(numbers[canonical(Value(given), self._found)])
        plain = self._found.low[given] if isinstance(given, fx.Node) else given
        if plain is None or isinstance(plain, bool | int | float | str):
            return plain
        raise UsageError(
            f"{node.target} is given a {type(plain).__name__}{line_of_node(node)}; a layer takes tensors and plain "
            "values, so pass these one by one"
        )

    # ---- the graph --------------------------------------------------------------------------------------

    def graph(self, module: nn.Module) -> Graph:
        """The layers and edges; `recipe` was called for each segment."""
        placeholders = [node for node in self._traced.train.nodes if node.op == "placeholder"]
        made = [
            *((BATCH, Value(node)) for node in placeholders),
            *((segment.index, value) for segment in self._segments for value in segment.outputs),
        ]
        layers = tuple(
            Layer(
                segment.index,
                segment.name or "forward",
                tuple(map(_name, segment.inputs)),
                tuple(map(_name, segment.outputs)),
            )
            for segment in self._segments
        )
        self._found.flow(self._prediction).check(f"what {type(module).__name__} returns")
        edges = tuple(self._edge(producer, value) for producer, value in made)
        return Graph(layers, edges, _name(self._prediction), _ties(module))

    def _edge(self, producer: int, value: Value) -> Edge:
        consumers = [segment.index for segment in self._segments for one in segment.inputs if one == value]
        return self._found.flow(value).edge(_name(value), producer, consumers)


def _is_user(node: fx.Node) -> bool:
    return node.op in ("call_module", "call_function", "call_method", "output")


def _name(value: Value) -> str:
    if value.node.op == "placeholder":
        return str(value.node.target)
    return ".".join(map(str, (value.node.name, *value.path)))


def _ties(module: nn.Module) -> tuple[tuple[str, ...], ...]:
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return tuple(tuple(group) for group in names.values() if len(group) > 1)


@dataclass(frozen=True)
class _Weights:
    """The live module's tensors, layer by layer; those on the meta device come from elsewhere."""

    module: nn.Module
    recipes: Sequence[Recipe]

    def __call__(self, index: int) -> Mapping[str, Tensor]:
        with torch.device("meta"):
            layer = build(self.recipes[index])
        named: dict[str, Tensor] = dict(self.module.named_parameters(remove_duplicate=False))
        named |= dict(self.module.named_buffers(remove_duplicate=False))
        wanted = [name for name, _ in (*layer.named_parameters(), *layer.named_buffers())]
        return {name: named[name].detach() for name in wanted if not named[name].is_meta}
