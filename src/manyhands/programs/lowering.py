"""A traced graph to a program's: operators by key, values by number, everything else gone.

::

    placeholders                parameters, buffers, constants, batch tensors that something uses
    getitem, aliases            no node: a reference to where the value comes from
    a region without gradients  its nodes, its results detached
    assertions                  left out
    the rest                    one node each, if the table has it; unused ones left out, unless they write in place
                                or draw random numbers, which the ones after them would otherwise see

Devices and layouts are dropped. Whatever has no place in the format ends in CaptureFailed with the line of the
model's code that made it.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any, Final, get_args

import torch
from torch import Tensor, fx
from torch._ops import HigherOrderOperator, OpOverload
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from manyhands.errors import CaptureFailed
from manyhands.programs import format as formats
from manyhands.programs import reading
from manyhands.programs.blame import line_of_node
from manyhands.programs.equations import explicit
from manyhands.programs.format import (
    Argument,
    Dtype,
    Equation,
    Graph,
    Input,
    Items,
    Keyword,
    MemoryFormat,
    Node,
    Ref,
    Word,
)
from manyhands.programs.operators import TABLE
from manyhands.programs.tracing import WAY_OUT, Trace
from manyhands.tensors import dtypes

_SIZES: Final[Mapping[Any, str]] = {
    operator.add: "int.add",
    operator.sub: "int.sub",
    operator.mul: "int.mul",
    operator.floordiv: "int.floordiv",
    operator.mod: "int.mod",
    operator.neg: "int.neg",
    operator.truediv: "int.truediv",
    torch.sym_min: "int.min",
    torch.sym_max: "int.max",
}
_SAME: Final[Mapping[str, str]] = {
    "lift_fresh.default": "clone.default",
    "lift_fresh_copy.default": "clone.default",
    "detach_.default": "detach.default",
}
"""What the tracer puts around a constant; and what it is where it must be a value of its own."""
_CASTS: Final = frozenset({"to.device", "to.dtype", "to.dtype_layout", "to.other", "_to_copy.default"})
_LEFT_OUT: Final = frozenset({"device", "layout", "pin_memory", "non_blocking", "generator"})
_MIXED: Final = ("linear", "matmul", "mm", "bmm", "addmm", "conv", "einsum", "attention", "lstm", "gru")
"""What autocast computes in 16 bits, by parts of names."""
_WORDS: Final = frozenset(word for names in get_args(formats.WordName) for word in get_args(names))
_DTYPES: Final = frozenset(get_args(formats.DtypeName))
_KINDS: Final = {"parameter": "a parameter", "constant": "a constant", "batch": "the batch"}


def lower(trace: Trace, inputs: Mapping[str, Input]) -> Graph:
    """The graph of `trace`; `inputs` says what each placeholder is.

    CaptureFailed for an operator, an argument or a result that a program cannot hold.
    """
    module = trace.exported.graph_module
    wanted = reading.wanted(module)
    used = {name: source for name, source in inputs.items() if name in wanted}
    # A tied weight, and a constant that is made twice, stand behind several placeholders and are one input.
    numbers = {source: number for number, source in enumerate(dict.fromkeys(used.values()))}
    lowering = _Lowering(len(numbers), wanted)
    by_name = {node.name: node for node in module.graph.nodes}
    for name, source in used.items():
        lowering.values[by_name[name]] = Ref(numbers[source])
        if source.kind != "buffer":
            lowering.fixed[by_name[name]] = _KINDS[source.kind]
    outputs = lowering.graph(module)
    loss = outputs.pop(0) if trace.has_loss else None
    return Graph(tuple(numbers), tuple(lowering.nodes), loss, tuple(outputs), trace.structure)


class _Lowering:
    """The nodes written so far, and where each value of the trace stands."""

    def __init__(self, num_inputs: int, wanted: set[str]) -> None:
        self.nodes: list[Node] = []
        self.values: dict[fx.Node, Any] = {}
        self.fixed: dict[fx.Node, str] = {}
        self._num_inputs = num_inputs
        self._wanted = wanted

    def graph(self, module: fx.GraphModule, is_region: bool = False) -> list[Any]:
        """Write the nodes of `module`; what it returns, as references."""
        for node in module.graph.nodes:
            if node.op == "output":
                return [self._argument(node, value) for value in reading.listed(node.args[0])]
            if node.op == "call_function" and (is_region or node.name in self._wanted):
                self._call(node, module)
        raise CaptureFailed(f"the traced graph has no output, {WAY_OUT}")

    def _call(self, node: fx.Node, module: fx.GraphModule) -> None:
        if node.target is operator.getitem:
            self.values[node] = self._item(node)
        elif node.target in _SIZES:
            self._size(node)
        elif isinstance(node.target, HigherOrderOperator):
            self.values[node] = self._inlined(node, module)
        elif isinstance(node.target, OpOverload):
            self._operator(node, node.target)
        else:
            raise self._refused(
                node, f"{getattr(node.target, '__name__', node.target)} is no operator on tensors"
            )

    def _item(self, node: fx.Node) -> Any:
        made, at = self.values[reading.source_of(node)], node.args[1]
        assert isinstance(at, int)
        return made[at] if isinstance(made, list) else Ref(made.value, at)

    def _size(self, node: fx.Node) -> None:
        self._write(node, _SIZES[node.target], self._arguments(node, node.args), ())

    def _operator(self, node: fx.Node, target: OpOverload) -> None:
        key = f"{target._opname}.{target._overloadname}"
        if key.startswith(("_assert", "sym_constrain")):
            return
        if key in _SAME and self._is_same(node):
            self._alias(node)
            return
        if key in _CASTS:
            self._cast(node)
            return
        key = _SAME.get(key, key)
        if target.namespace != "aten" or key not in TABLE:
            raise self._refused(node, f"{target} is not among the operators that programs may use")
        self._check_results(node)
        self._check_writes(node, target)
        kwargs = tuple(
            Keyword(word, self._argument(node, value))
            for word, value in node.kwargs.items()
            if word not in _LEFT_OUT
        )
        # Rows have no place for what is left out, so what comes after moves up.
        given = [
            value
            for value, parameter in zip(node.args, target._schema.arguments, strict=False)
            if parameter.name not in _LEFT_OUT
        ]
        self._write(node, key, self._arguments(node, given), kwargs)

    def _alias(self, node: fx.Node) -> None:
        """`node` is its first argument."""
        source = reading.source_of(node)
        self.values[node] = self.values[source]
        if source in self.fixed:
            self.fixed[node] = self.fixed[source]

    def _is_same(self, node: fx.Node) -> bool:
        """Whether a copy may be its original: nothing writes to it, and there is no gradient to cut."""
        is_cut = node.target == torch.ops.aten.detach_.default
        return not reading.is_written(node) and (
            not is_cut or self.fixed.get(reading.source_of(node)) == "a constant"
        )

    def _cast(self, node: fx.Node) -> None:
        """``to`` in all its forms: a dtype, since devices do not travel; nothing where the dtype stays."""
        source, after, given = reading.source_of(node), node.meta["val"].dtype, reading.bound(node)
        copies = bool(given.get("copy")) or node.target == torch.ops.aten._to_copy.default
        order = given.get("memory_format")
        if source.meta["val"].dtype == after and not copies and order is None:
            self._alias(node)
            return
        options = {"copy": copies or None, "memory_format": order}
        kwargs = tuple(
            Keyword(name, self._argument(node, value)) for name, value in options.items() if value is not None
        )
        self._write(node, "to.dtype", (self.values[source], self._argument(node, after)), kwargs)

    def _inlined(self, node: fx.Node, module: fx.GraphModule) -> list[Any]:
        """A region with gradients switched off or on, or with autocast, as if it were written out."""
        region = reading.region_of(node, module)
        kind = str(node.target)
        if region is None or kind not in ("wrap_with_set_grad_enabled", "wrap_with_autocast"):
            raise self._refused(node, f"{kind} is control flow or a wrapper that programs do not have")
        if kind == "wrap_with_autocast":
            self._check_autocast(node, region)
        given = node.args[node.args.index(reading.graph_argument(node)) + 1 :]
        inner = [part for part in region.graph.nodes if part.op == "placeholder"]
        for placeholder, value in zip(inner, given, strict=True):
            self.values[placeholder] = self._argument(node, value)
            if value in self.fixed:
                self.fixed[placeholder] = self.fixed[value]  # type: ignore[index]
        results = self.graph(region, is_region=True)
        if kind == "wrap_with_set_grad_enabled" and node.args[0] is False:
            returned = next(part for part in region.graph.nodes if part.op == "output").args[0]
            return [
                self._add("detach.default", (made,), ())
                if isinstance(source.meta.get("val"), Tensor)
                else made
                for source, made in zip(reading.listed(returned), results, strict=True)
            ]
        return results

    def _check_autocast(self, node: fx.Node, region: fx.GraphModule) -> None:
        device, dtype, enabled = node.args[:3]
        ambient = torch.is_autocast_enabled(str(device))
        same = ambient == enabled and (not enabled or torch.get_autocast_dtype(str(device)) == dtype)
        if not same and any(part in str(inner.target) for inner in region.graph.nodes for part in _MIXED):
            raise CaptureFailed(
                f"the model switches autocast {'on' if enabled else 'off'}{reading.blamed(region)} while "
                f"the run has it {'on' if ambient else 'off'}, and a program is computed in one precision: leave "
                f"autocast to the run (precision=...), {WAY_OUT}"
            )

    def _check_results(self, node: fx.Node) -> None:
        made = [value for value in reading.listed(node.meta.get("val")) if value is not None]
        if (
            any(not isinstance(value, Tensor) for value in made)
            and node.target != torch.ops.aten.sym_size.int
        ):
            raise self._refused(node, "a number is made of a tensor (.item(), float() or int())")
        if any(free_unbacked_symbols(value) for value in made):
            raise self._refused(
                node, "the result's size depends on values (a boolean index, nonzero, unique)"
            )

    def _check_writes(self, node: fx.Node, target: OpOverload) -> None:
        for source in node.all_input_nodes:
            held = self.fixed.get(source)
            if held is None:
                continue
            if reading.writes_to(node, source):
                raise self._refused(
                    node,
                    f"{held} is changed in place; keep what changes in a buffer (register_buffer), or copy it",
                )
            if any(result.alias_info is not None for result in target._schema.returns):
                self.fixed[node] = held

    def _arguments(self, node: fx.Node, values: Iterable[Any]) -> tuple[Argument, ...]:
        return tuple(self._argument(node, value) for value in values)

    def _argument(self, node: fx.Node, value: Any) -> Any:
        if isinstance(value, fx.Node):
            return self.values[value]
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, list | tuple):
            return Items(tuple(self._argument(node, item) for item in value))
        if isinstance(value, torch.dtype) and dtypes.NAMES.get(value) in _DTYPES:
            return Dtype(dtypes.NAMES[value])  # type: ignore[arg-type]
        if isinstance(value, torch.memory_format):
            return MemoryFormat(str(value).removeprefix("torch."))  # type: ignore[arg-type]
        if isinstance(value, str) and value in _WORDS:
            return Word(value)  # type: ignore[arg-type]
        if isinstance(value, str) and node.target == torch.ops.aten.einsum.default:
            return Equation(explicit(value, [part.meta["val"].ndim for part in node.args[1]]))  # type: ignore[union-attr]
        raise self._refused(node, f"{node.target} is given {str(value)[:60]!r}, which a program cannot hold")

    def _write(
        self, node: fx.Node, key: str, args: tuple[Argument, ...], kwargs: tuple[Keyword, ...]
    ) -> None:
        self.values[node] = self._add(key, args, kwargs)

    def _add(self, key: str, args: tuple[Argument, ...], kwargs: tuple[Keyword, ...]) -> Ref:
        self.nodes.append(Node(key, args, kwargs))
        return Ref(self._num_inputs + len(self.nodes) - 1)

    def _refused(self, node: fx.Node, what: str) -> CaptureFailed:
        return CaptureFailed(f"{what}{line_of_node(node)}. Rewrite that line, {WAY_OUT}")
