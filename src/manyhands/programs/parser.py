"""Bytes of a stranger to a program that means something, or a refusal that says which node and why.

Sizes first: no more is decoded than a real program has, and nothing is allocated by what a length claims.
msgspec builds the closed set of structs; what it cannot say (a reference looks back, a name stands once, an
argument is of its parameter's kind) is checked here, in one pass in which nothing is looked up but keys of our own
table. No tensor is made. What shapes and costs come out is the dry run's to judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
import torch

from manyhands.errors import ProgramRefused, ProtocolError
from manyhands.programs import arguments
from manyhands.programs.arguments import Made
from manyhands.programs.binding import bind
from manyhands.programs.format import (
    HEADER,
    MAGIC,
    MAX_CONSTANT_BYTES,
    MAX_CONTROL_BYTES,
    VERSION,
    Graph,
    Input,
    Node,
    Program,
    Ref,
    TensorRow,
)
from manyhands.programs.operators import TABLE
from manyhands.programs.operators.row import Kind, Result
from manyhands.tensors import dtypes
from manyhands.tensors.layout import shape_problem
from manyhands.tensors.memory import num_elements, padded
from manyhands.tensors.structure import Slot, Structure, check

_DECODER: Final = msgspec.msgpack.Decoder(Program)

_TENSOR: Final[Made] = (Result.TENSOR, 1)


def parse(data: bytes, *, has_loss: bool = True) -> Program:
    """The program that `data` is; ProgramRefused with the node and the reason where it is none.

    With `has_loss` a train graph must end in a loss; without, no graph may: it is a layer.
    """
    program = _decode(data)
    _check_tensors(program)
    _check_structure(program.batch.structure, _leaves(program), "the batch")
    if program.graphs.train is None and program.graphs.eval is None:
        raise ProgramRefused("a program has neither a train nor an eval graph")
    for name, graph in (("train", program.graphs.train), ("eval", program.graphs.eval)):
        if graph is not None:
            _check_graph(program, graph, name, has_loss)
    return program


def _decode(data: bytes) -> Program:
    if not HEADER.size <= len(data) <= HEADER.size + MAX_CONTROL_BYTES + MAX_CONSTANT_BYTES:
        raise ProgramRefused(f"a program of {len(data)} bytes")
    magic, version, control_bytes = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise ProgramRefused("these bytes are no program: they begin with something else")
    if version != VERSION:
        raise ProgramRefused(
            f"the program has format version {version}, this machine reads {VERSION}: update one"
        )
    end = HEADER.size + control_bytes
    if control_bytes > MAX_CONTROL_BYTES or not end <= len(data) <= end + MAX_CONSTANT_BYTES:
        raise ProgramRefused(
            f"a program of {len(data)} bytes says that {control_bytes} of them are its nodes"
        )
    try:
        program = _DECODER.decode(memoryview(data)[HEADER.size : end])
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ProgramRefused(f"these bytes are no program: {str(error)[:200]}") from None
    if program.version != version or program.data:
        raise ProgramRefused("a program contradicts its header")
    return msgspec.structs.replace(program, data=bytes(memoryview(data)[end:]))


# ---- tables -----------------------------------------------------------------------------------------


def _check_tensors(program: Program) -> None:
    names: set[str] = set()
    for row in (*program.parameters, *program.buffers):
        _check_tensor(row)
        for name in (row.name, *row.aliases):
            if name in names:
                raise ProgramRefused(f"the tensor name {name[:60]!r} stands twice")
            names.add(name)
    if any(row.requires_grad for row in program.buffers):
        raise ProgramRefused("a buffer cannot require a gradient")
    num_bytes = 0
    for constant in program.constants:
        _check_shape(constant.shape, "a constant")
        num_bytes += padded(num_elements(constant.shape) * dtypes.DTYPES[constant.dtype].itemsize)
    if num_bytes != len(program.data):
        raise ProgramRefused(
            f"{len(program.constants)} constants take {num_bytes} bytes, {len(program.data)} came"
        )


def _check_tensor(row: TensorRow) -> None:
    _check_shape(row.shape, f"{row.name[:60]!r}")
    if row.requires_grad and not dtypes.DTYPES[row.dtype].is_floating_point:
        raise ProgramRefused(f"{row.name[:60]!r} is {row.dtype} and cannot require a gradient")


def _check_shape(shape: Sequence[int], what: str) -> None:
    if problem := shape_problem(shape):
        raise ProgramRefused(f"{what}: {problem}")


def _leaves(program: Program) -> list[tuple[torch.dtype, int]]:
    for leaf in program.batch.leaves:
        _check_shape([size for size in leaf.shape if size is not None], "a batch tensor")
    return [(dtypes.DTYPES[leaf.dtype], len(leaf.shape)) for leaf in program.batch.leaves]


def _check_structure(structure: Structure, leaves: Sequence[tuple[torch.dtype, int]], what: str) -> None:
    try:
        check(structure, leaves)
    except ProtocolError as error:
        raise ProgramRefused(f"{what}: {error}") from None


# ---- graphs -----------------------------------------------------------------------------------------


def _check_graph(program: Program, graph: Graph, name: str, has_loss: bool) -> None:
    values = _check_inputs(program, graph.inputs, name)
    for number, node in enumerate(graph.nodes):
        try:
            values.append(_check_node(node, graph.inputs, values))
        except ProgramRefused as refusal:
            text = f"node {number} ({node.operator[:60]!r}) of {name}: {refusal}"
            raise ProgramRefused(text, node=number) from None
    _check_results(program, graph, values, name, has_loss)


def _check_inputs(program: Program, inputs: Sequence[Input], name: str) -> list[Made]:
    tables: dict[str, Sequence[object]] = {
        "parameter": program.parameters,
        "buffer": program.buffers,
        "constant": program.constants,
        "batch": program.batch.leaves,
    }
    for number, one in enumerate(inputs):
        if one.index >= len(tables[one.kind]):
            raise ProgramRefused(
                f"input {number} of {name} is {one.kind} {one.index} of {len(tables[one.kind])}"
            )
    if len({(one.kind, one.index) for one in inputs}) != len(inputs):
        raise ProgramRefused(f"{name} takes an input twice")
    return [_TENSOR] * len(inputs)


def _check_results(program: Program, graph: Graph, values: Sequence[Made], name: str, has_loss: bool) -> None:
    refs = [*graph.outputs, *(mutation.value for mutation in graph.mutations)]
    if graph.loss is not None:
        refs.append(graph.loss)
    if (graph.loss is None) == has_loss and (name == "train" or not has_loss):
        raise ProgramRefused(f"the {name} graph has {'no' if has_loss else 'a'} loss")
    for ref in refs:
        arguments.check_reference(ref, values, Kind.TENSOR)
    buffers = [mutation.buffer for mutation in graph.mutations]
    if len(set(buffers)) != len(buffers) or any(buffer >= len(program.buffers) for buffer in buffers):
        raise ProgramRefused(f"{name} mutates a buffer twice, or one of more than {len(program.buffers)}")
    if any(isinstance(node, Slot) and node.kind != "tensor" for node in graph.structure.nodes):
        raise ProgramRefused(f"the output of {name} holds an array; outputs are tensors")
    _check_structure(graph.structure, [(torch.float32, 0)] * len(graph.outputs), f"the output of {name}")


def _check_node(node: Node, inputs: Sequence[Input], values: Sequence[Made]) -> Made:
    row = TABLE.get(node.operator)
    if row is None:
        raise ProgramRefused("this machine's list of operators does not have it")
    for parameter, argument in bind(row, node):
        if problem := arguments.problem(parameter, argument, values):
            raise ProgramRefused(f"{parameter.name}: {problem}")
        if parameter.name in row.writes and isinstance(argument, Ref) and argument.value < len(inputs):
            kind = inputs[argument.value].kind
            if kind != "buffer":
                raise ProgramRefused(f"it would write to a {kind} in place")
    return row.result, row.results
