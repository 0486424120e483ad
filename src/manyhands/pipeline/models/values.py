"""What each node of a trace gives, found by running it on the meta device with two batch sizes.

Tensors flow between layers; numbers do not: one that is the same for both sizes is a constant, any other is the size
of some tensor that is there anyway. Knows nothing of layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from manyhands.errors import UsageError
from manyhands.pipeline.models.reading import Example
from manyhands.pipeline.models.shapes import Flow
from manyhands.pipeline.models.tracing import Traced
from manyhands.programs.blame import line_of_node

Path = tuple[int | str, ...]


@dataclass(frozen=True)
class Value:
    """A tensor that some node gives: the node's result, or what stands at `path` in it."""

    node: fx.Node
    path: Path = ()


@dataclass(frozen=True)
class Values:
    """Results of every node of a trace's train graph, for both batch sizes."""

    low: Mapping[fx.Node, Any]
    high: Mapping[fx.Node, Any]

    def is_tensors(self, node: fx.Node) -> bool:
        """Whether the result is a tensor, or holds one."""
        return bool(list(paths(self.low[node])))

    def of(self, node: fx.Node) -> list[Value]:
        """The tensors of the result, under the nodes that made them."""
        made = canonical(Value(node), self)
        return [Value(made.node, made.path + path) for path in paths(self.low[node])]

    def flow(self, value: Value) -> Flow:
        """What flows in `value`."""
        return Flow(_at(self.low[value.node], value.path), _at(self.high[value.node], value.path))


def canonical(value: Value, values: Values) -> Value:
    """`value` under the node that made it: picking from a tuple makes nothing."""
    node = value.node
    if node.op == "call_function" and node.target.__name__ == "getitem":  # type: ignore[union-attr]
        source, at = node.args
        if (
            isinstance(source, fx.Node)
            and not isinstance(values.low[source], Tensor)
            and isinstance(at, int | str)
        ):
            return canonical(Value(source, (at, *value.path)), values)
    return value


def paths(made: Any) -> Iterator[Path]:
    """Where the tensors of a result stand in it, in the order of `recipes.build.tensors_of`."""
    if isinstance(made, Tensor):
        yield ()
    elif isinstance(made, Mapping):
        for name, item in made.items():
            yield from ((name, *path) for path in paths(item))
    elif isinstance(made, tuple | list):
        for at, item in enumerate(made):
            yield from ((at, *path) for path in paths(item))


def _at(made: Any, path: Path) -> Any:
    for key in path:
        made = made[key]
    return made


def run(traced: Traced, layers: Mapping[str, nn.Module], example: Example) -> Values:
    """Run the train graph of `traced`; `layers` are the called modules on the meta device, by their paths."""
    size = example.x.shape[0] if example.x.ndim else 0
    if size < 1:
        raise UsageError(f"the main input is {tuple(example.x.shape)}; its first dimension is the batch's")

    def flow(tensor: Tensor) -> Flow:
        if tensor.ndim and tensor.shape[0] == size:
            return Flow.of_batch(tensor.shape[1:], tensor.dtype)
        return Flow.of_all(tensor.shape, tensor.dtype)

    flows = [flow(example.x), *(flow(example.extra[name]) for name in traced.extras)]
    low, high = (
        _Run(traced, layers).results([getattr(one, side) for one in flows]) for side in ("low", "high")
    )
    return Values(low, high)


class _Run(fx.Interpreter):
    """One run without values: parameters and layers are stand-ins on the meta device."""

    def __init__(self, traced: Traced, layers: Mapping[str, nn.Module]) -> None:
        super().__init__(traced.root, garbage_collect_values=False, graph=traced.train)
        self.extra_traceback = False  # errors name the user's line
        self._layers = layers
        self._tensors = traced.tensors
        self._name = type(traced.root).__name__

    def results(self, inputs: list[Tensor]) -> dict[fx.Node, Any]:
        """What every node gives."""
        with torch.device("meta"), torch.enable_grad():
            self.run(*inputs, enable_io_processing=False)
        return dict(self.env)

    def run_node(self, n: fx.Node) -> Any:
        """A node's result; UsageError names the line where torch refuses the shapes."""
        try:
            return super().run_node(n)
        except UsageError:
            raise
        except Exception as error:
            text = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            where = f" in layer {n.target}" if n.op == "call_module" else line_of_node(n)
            raise UsageError(f"{self._name} cannot take this batch{where}: {text}") from error

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """The stand-in of a layer."""
        return self._layers[target](*args, **kwargs)

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """The stand-in of a parameter, buffer or constant."""
        found = self._tensors[target]
        return torch.empty_like(found, device="meta", requires_grad=found.requires_grad)
