"""A graph walked with shapes alone: what it would hold, what it would compute, and every number in it.

Tensors stand on the meta device and own no memory, so a graph that asks for too much is refused before a byte
of it is allocated. Sizes are static once the batch's are known: what passes here for a batch's shapes needs no check
when it runs, and the interpreter gets calls in which only tensors are still open.

All values are counted, for autograd keeps them; a view is free unless it spans more than what it looks at.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor

from manyhands.errors import ProgramRefused
from manyhands.programs import autocast
from manyhands.programs.binding import bind
from manyhands.programs.format import (
    Argument,
    Dtype,
    Equation,
    Graph,
    Items,
    MemoryFormat,
    Node,
    Program,
    Ref,
    Word,
)
from manyhands.programs.operators import TABLE
from manyhands.programs.operators.require import is_integral, listed, size_problem
from manyhands.programs.operators.row import MAX_RANK, MAX_RESULTS, REQUIRED, Result, Row
from manyhands.programs.plan import Call, Cost, Leaf, Limits, Plan
from manyhands.tensors.dtypes import DTYPES

MEMORY_FORMATS: Final = MappingProxyType(
    {
        "contiguous_format": torch.contiguous_format,
        "preserve_format": torch.preserve_format,
        "channels_last": torch.channels_last,
        "channels_last_3d": torch.channels_last_3d,
    }
)
_META: Final = torch.device("meta")


def dry_run(
    program: Program, graph: Graph, leaves: Sequence[Leaf], limits: Limits, device_type: str = "cpu"
) -> Plan:
    """The plan of `graph` for batch tensors `leaves`; ProgramRefused, with the node, where it may not run."""
    if len(graph.nodes) > limits.nodes:
        raise ProgramRefused(f"the program has {len(graph.nodes)} nodes; this machine takes {limits.nodes}")
    walk = _Walk(limits, device_type)
    # A warning that is shown opens the source file it came from.
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        walk.add_inputs(program, graph, leaves)
        calls = [call for at, node in enumerate(graph.nodes) if (call := walk.add(at, node)) is not None]
    _check_results(program, graph, walk)
    return Plan(tuple(calls), Cost(walk.bytes, walk.flops))


class _Walk:
    """The values made so far, on the meta device, and the sums."""

    def __init__(self, limits: Limits, device_type: str) -> None:
        self.limits = limits
        self.device_type = device_type
        self.values: list[Any] = []
        self.bytes = 0
        self.flops = 0
        self._storages: set[int] = set()

    def add_inputs(self, program: Program, graph: Graph, leaves: Sequence[Leaf]) -> None:
        """Check `leaves` against the program's batch, and make a value of each input."""
        if len(leaves) != len(program.batch.leaves):
            raise ProgramRefused(
                f"a batch of {len(leaves)} tensors; the program takes {len(program.batch.leaves)}"
            )
        for number, ((dtype, shape), row) in enumerate(zip(leaves, program.batch.leaves, strict=True)):
            fits = len(shape) == len(row.shape) and all(
                wanted in (None, size) for wanted, size in zip(row.shape, shape, strict=False)
            )
            if not fits or not autocast.may_stand_for(dtype, DTYPES[row.dtype], self.device_type):
                raise ProgramRefused(
                    f"batch tensor {number} is {dtype} {tuple(shape)}; the program takes {row.dtype} {row.shape}"
                )
        tables: dict[str, Sequence[Leaf]] = {
            "parameter": [(DTYPES[row.dtype], row.shape) for row in program.parameters],
            "buffer": [(DTYPES[row.dtype], row.shape) for row in program.buffers],
            "constant": [(DTYPES[row.dtype], row.shape) for row in program.constants],
            "batch": leaves,
        }
        for one in graph.inputs:
            dtype, shape = tables[one.kind][one.index]
            if problem := size_problem(shape):
                raise ProgramRefused(f"{one.kind} {one.index}: {problem}")
            self._keep(torch.empty(shape, dtype=dtype, device=_META), f"{one.kind} {one.index}")

    def add(self, at: int, node: Node) -> Call | None:
        """One node: its preconditions, its results' shapes, its cost; None where it only makes a number."""
        row = TABLE[node.operator]
        try:
            return self._add(row, node)
        except ProgramRefused as refusal:
            raise ProgramRefused(f"node {at} ({row.key}): {refusal}", node=at) from None

    def _add(self, row: Row, node: Node) -> Call | None:
        given = {parameter.name: self._number(argument) for parameter, argument in bind(row, node)}
        arguments = {
            parameter.name: self._tensors(given[parameter.name])
            if parameter.name in given
            else parameter.default
            for parameter in row.parameters
            if parameter.name in given or parameter.default is not REQUIRED
        }
        if (dtype := autocast.target(row.key, arguments, self.device_type)) is not None:
            arguments = {name: autocast.cast(value, dtype) for name, value in arguments.items()}
        for value in arguments.values():
            if any(tensor.dim() > MAX_RANK for tensor in listed(value)):
                raise ProgramRefused(f"a tensor of more than {MAX_RANK} dimensions")
        args, kwargs = _ordered(row, given)
        try:
            self._make(row, arguments, args, kwargs)
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            # Whatever an operator's own checks raise on shapes, it would raise on these tensors too.
            text = str(error).partition("\n")[0][:200]
            raise ProgramRefused(text or type(error).__name__) from None
        return None if row.result is Result.NUMBER else Call(row, args, kwargs, len(self.values) - 1)

    def _make(
        self, row: Row, arguments: Mapping[str, Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        if problem := row.problem(arguments):
            raise ProgramRefused(problem)
        if row.result is Result.NUMBER:
            self.values.append(row.call(*arguments.values()))
            return
        if row.workspace is not None:
            self._spend(row.workspace(arguments), 0, "workspace")
        result = row.infer(arguments) if row.infer is not None else _asked(row, args, kwargs, arguments)
        self._keep(result, "result")
        results = listed(result)
        flops = row.flops(arguments, results) if row.flops is not None else _elements(arguments, results)
        self._spend(0, flops, "work")

    # ---- values ----------------------------------------------------------------------------------------

    def _number(self, argument: Argument) -> Any:
        """`argument` as the operator takes it, tensors left open as Ref."""
        match argument:
            case Ref():
                value = self.values[argument.value]
                return argument if isinstance(value, Tensor | list) else value
            case Items():
                return [self._number(item) for item in argument.items]
            case Dtype():
                return DTYPES[argument.name]
            case MemoryFormat():
                return MEMORY_FORMATS[argument.name]
            case Word():
                return argument.name
            case Equation():
                return argument.text
            case _:
                return argument

    def _tensors(self, value: Any) -> Any:
        """`value` with each Ref replaced by its meta tensor."""
        if isinstance(value, list):
            return [self._tensors(item) for item in value]
        if not isinstance(value, Ref):
            return value
        return self.tensor(value)

    def tensor(self, ref: Ref) -> Any:
        """What `ref` names; ProgramRefused where a list turned out to be shorter."""
        value = self.values[ref.value]
        if ref.element is None:
            return value
        if ref.element >= len(value):
            raise ProgramRefused(f"element {ref.element} of the {len(value)} results of value {ref.value}")
        return value[ref.element]

    def _keep(self, result: Any, what: str) -> None:
        results = listed(result)
        if not results or len(results) > MAX_RESULTS:
            raise ProgramRefused(f"{len(results)} results; 1 to {MAX_RESULTS} are allowed")
        for tensor in results:
            if problem := size_problem(tensor.shape):
                raise ProgramRefused(problem)
            self._spend(self._new_bytes(tensor), 0, f"{what} {tuple(tensor.shape)}")
        self.values.append(result if isinstance(result, Tensor) else results)

    def _new_bytes(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        num_bytes = tensor.numel() * tensor.element_size()
        if storage._cdata not in self._storages:
            self._storages.add(storage._cdata)
            return max(num_bytes, storage.nbytes())
        return num_bytes if num_bytes > storage.nbytes() else 0

    def _spend(self, num_bytes: int, flops: int, what: str) -> None:
        self.bytes += num_bytes
        self.flops += flops
        if self.bytes > self.limits.bytes:
            raise ProgramRefused(
                f"{what} brings the program to {self.bytes >> 20} MiB; this machine lends {self.limits.bytes >> 20} MiB"
            )
        if self.flops > self.limits.flops:
            raise ProgramRefused(
                f"{what} brings a forward to {self.flops:.3g} operations; this machine takes {self.limits.flops:.3g}"
            )


def _ordered(row: Row, given: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """`given` as positional arguments, gaps filled with defaults, and keyword-only ones."""
    positional = [parameter for parameter in row.parameters if not parameter.keyword_only]
    while positional and positional[-1].name not in given:
        positional.pop()
    args = tuple(given.get(parameter.name, parameter.default) for parameter in positional)
    kwargs = {
        parameter.name: given[parameter.name]
        for parameter in row.parameters
        if parameter.keyword_only and parameter.name in given
    }
    return args, kwargs


def _asked(row: Row, args: Sequence[Any], kwargs: Mapping[str, Any], arguments: Mapping[str, Any]) -> Any:
    """The operator's results on the meta device, by its own shape function."""
    positional = [parameter.name for parameter in row.parameters if not parameter.keyword_only][: len(args)]
    return row.call(*(arguments[name] for name in positional), **kwargs)


def _elements(arguments: Mapping[str, Any], results: Sequence[Tensor]) -> int:
    """One operation an element read or made."""
    read = sum(tensor.numel() for value in arguments.values() for tensor in listed(value))
    return read + sum(tensor.numel() for tensor in results)


def _check_results(program: Program, graph: Graph, walk: _Walk) -> None:
    if graph.loss is not None:
        loss = walk.tensor(graph.loss)
        if loss.numel() != 1 or is_integral(loss.dtype):
            raise ProgramRefused(f"the loss is {loss.dtype} {tuple(loss.shape)}, not one floating number")
    for ref in graph.outputs:
        walk.tensor(ref)
    for mutation in graph.mutations:
        row, value = program.buffers[mutation.buffer], walk.tensor(mutation.value)
        if tuple(value.shape) != row.shape or value.dtype != DTYPES[row.dtype]:
            raise ProgramRefused(
                f"buffer {row.name[:60]!r} is {row.dtype} {row.shape} and would become {value.dtype} "
                f"{tuple(value.shape)}"
            )
