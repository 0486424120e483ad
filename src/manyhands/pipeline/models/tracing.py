"""A module's forward as a graph of calls, by ``torch.fx``: layers of torch as single nodes, the rest as operators.

The mode is baked into a trace (``F.dropout(x, training=self.training)``), so there are two, which must call the same
things in the same order. What cannot be traced is told with the line at fault. Knows nothing of layers or recipes.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from torch import Tensor, fx, nn

from manyhands.errors import UsageError
from manyhands.pipeline.graph import MAIN_INPUT
from manyhands.pipeline.recipes import catalogue
from manyhands.programs.blame import line_of_error
from manyhands.programs.undisturbed import mode, undisturbed

WAYS_OUT: Final = (
    "Write that line with torch operators on tensors, or give the model as a layer list, in which a class of your "
    "own is one layer: [(MyBlock, {...}, shape), ...]"
)


_IN_PLACE: Final[Mapping[Any, Any]] = MappingProxyType(
    {
        operator.iadd: operator.add,
        operator.isub: operator.sub,
        operator.imul: operator.mul,
        operator.itruediv: operator.truediv,
    }
)


@dataclass(frozen=True)
class Traced:
    """A module's forward in both modes; the two graphs have the same nodes in the same order."""

    root: nn.Module
    train: fx.Graph
    eval: fx.Graph
    extras: tuple[str, ...]
    """Names of the inputs after the main one, in the order of ``forward``."""
    tensors: Mapping[str, Tensor]
    """What the graphs take from the module by name: parameters, buffers, and constants that forward makes."""


def trace(module: nn.Module, extra: Mapping[str, Tensor]) -> Traced:
    """The calls that `module` makes when it is given a main input and `extra` by name.

    The module is as before afterwards. UsageError names the line that cannot be traced, and the way out.
    """
    names = _inputs(module, extra)
    _check_modes(module)
    left_out = {
        name: parameter.default
        for name, parameter in list(inspect.signature(module.forward).parameters.items())[1:]
        if name not in extra and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
    graphs: list[fx.Graph] = []
    tensors: dict[str, Tensor] = {}
    for training in (True, False):
        with undisturbed(module), mode(training, module), _blamed(module):
            graph = _Tracer().trace(module, concrete_args=left_out or None)
            taken = [str(node.target) for node in graph.nodes if node.op == "get_attr"]
            tensors |= {name: operator.attrgetter(name)(module) for name in taken}
        _without_guards(graph, names)
        _out_of_place(graph)
        graphs.append(graph)
    train, evaluated = graphs
    if [_kind(node) for node in train.nodes] != [_kind(node) for node in evaluated.nodes]:
        raise UsageError(
            f"{type(module).__name__} calls other layers or operators in eval mode than in train mode, and a pipeline "
            f"has one graph: make the difference in a layer (Dropout, BatchNorm). {WAYS_OUT}"
        )
    return Traced(module, train, evaluated, names, tensors)


class _Tracer(fx.Tracer):
    """Layers of the catalogue are single calls; all else is traced into."""

    record_stack_traces = True  # errors name the line
    proxy_buffer_attributes = True  # a mask is cut to the input's length: mask[:t, :t]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in catalogue.KEYS


def _inputs(module: nn.Module, extra: Mapping[str, Tensor]) -> tuple[str, ...]:
    parameters = list(inspect.signature(module.forward).parameters.values())
    if not parameters:
        raise UsageError(f"forward of {type(module).__name__} takes no input")
    names = [one.name for one in parameters[1:] if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    for name in extra:
        if name not in names or name == MAIN_INPUT:
            raise UsageError(
                f"the batch brings {name!r}, and forward of {type(module).__name__} takes "
                f"{', '.join(names) or 'nothing'} after its main input"
            )
    for one in parameters[1:]:
        if one.name in names and one.default is one.empty and one.name not in extra:
            raise UsageError(
                f"forward of {type(module).__name__} takes {one.name!r}, and the batch does not bring it: pass it by "
                f"name, {{{one.name!r}: tensor}}"
            )
    return tuple(name for name in names if name in extra)


def _check_modes(module: nn.Module) -> None:
    modes = ("eval", "train")
    for name, part in module.named_modules():
        if part.training != module.training:
            raise UsageError(
                f"{name} is in {modes[part.training]} mode and {type(module).__name__} in {modes[module.training]} "
                "mode: a pipeline trains or evaluates all layers at once, so call train() or eval() on the whole model"
            )


def _without_guards(graph: fx.Graph, extras: Sequence[str]) -> None:
    """Take out the inputs that were left at their defaults, and what the tracer asserts of them."""
    main, *others = [node for node in graph.nodes if node.op == "placeholder"]
    for node in others:
        if node.target not in extras:
            for user in list(node.users):
                for guard in list(user.users):
                    graph.erase_node(guard)
                graph.erase_node(user)
            graph.erase_node(node)
    main.target = main.name = MAIN_INPUT


def _out_of_place(graph: fx.Graph) -> None:
    """``y += x`` as ``y = y + x``, and who uses y afterwards uses the new one: a worker must not write to a skip.

    A view of the old y would have seen the change, too; where one is used afterwards, the proof of the reading says so.
    """
    order = {node: at for at, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        written = node.args[0] if node.args else None
        if isinstance(written, fx.Node) and _make_out_of_place(node):
            for user in [one for one in written.users if order[one] > order[node]]:
                user.replace_input_with(written, node)


def _make_out_of_place(node: fx.Node) -> bool:
    """Whether `node` wrote to its first argument, and now does not."""
    if node.op == "call_function" and node.target in _IN_PLACE:
        node.target = _IN_PLACE[node.target]
        return True
    plain = str(node.target).removesuffix("_")
    if node.op == "call_method" and plain != node.target and callable(getattr(Tensor, plain, None)):
        node.target = plain
        return True
    if node.kwargs.get("inplace") is True:
        node.kwargs = {**node.kwargs, "inplace": False}
        return True
    return False


def _kind(node: fx.Node) -> tuple[str, Any]:
    return node.op, node.target


@contextmanager
def _blamed(module: nn.Module) -> Iterator[None]:
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        text = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UsageError(
            f"{type(module).__name__} cannot be traced{line_of_error(error)}: {text.rstrip('.')}. {WAYS_OUT}"
        ) from error
