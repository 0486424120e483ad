"""Programs written by hand: a small builder over the format, for tests."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor

from manyhands.programs import constants
from manyhands.programs.format import (
    VERSION,
    Argument,
    Batch,
    Dtype,
    Equation,
    Graph,
    Graphs,
    Input,
    Items,
    Keyword,
    LeafRow,
    MemoryFormat,
    Node,
    Program,
    Ref,
    TensorRow,
    Word,
    encode,
)
from manyhands.programs.interpreter import Interpreter
from manyhands.programs.operators import TABLE
from manyhands.programs.operators.require import listed
from manyhands.programs.operators.row import Result
from manyhands.programs.parser import parse
from manyhands.programs.plan import Limits
from manyhands.tensors.dtypes import NAMES
from manyhands.tensors.structure import Seq, Slot, Structure

ROOMY = Limits(bytes=1 << 32, flops=10**13, nodes=20_000)


def argument(value: Any) -> Argument:
    """A Python value as it travels."""
    if isinstance(value, list | tuple):
        return Items(tuple(cast(Any, argument(item)) for item in value))
    if isinstance(value, torch.dtype):
        return Dtype(cast(Any, NAMES[value]))
    if isinstance(value, torch.memory_format):
        return MemoryFormat(cast(Any, str(value).removeprefix("torch.")))
    return cast(Argument, value)


class Builder:
    """Declare every input first, then call operators, then :meth:`program`."""

    def __init__(self) -> None:
        self.parameters: list[tuple[str, Tensor]] = []
        self.buffers: list[tuple[str, Tensor]] = []
        self.constants: list[Tensor] = []
        self.leaves: list[LeafRow] = []
        self.inputs: list[Input] = []
        self.nodes: list[Node] = []

    def parameter(self, tensor: Tensor, name: str = "") -> Ref:
        self.parameters.append((name or f"p{len(self.parameters)}", tensor))
        return self._input("parameter", len(self.parameters) - 1)

    def buffer(self, tensor: Tensor) -> Ref:
        self.buffers.append((f"b{len(self.buffers)}", tensor))
        return self._input("buffer", len(self.buffers) - 1)

    def constant(self, tensor: Tensor) -> Ref:
        self.constants.append(tensor)
        return self._input("constant", len(self.constants) - 1)

    def leaf(self, dtype: torch.dtype, *shape: int | None) -> Ref:
        self.leaves.append(LeafRow(cast(Any, NAMES[dtype]), shape))
        return self._input("batch", len(self.leaves) - 1)

    def call(self, key: str, *args: Any, **kwargs: Any) -> Ref:
        keywords = tuple(Keyword(name, argument(value)) for name, value in kwargs.items())
        self.nodes.append(Node(key, tuple(argument(value) for value in args), keywords))
        return Ref(len(self.inputs) + len(self.nodes) - 1)

    def program(self, loss: Ref | None, *outputs: Ref, mode: str = "train") -> Program:
        rows, data = constants.pack(self.constants)
        nodes = (Seq("tuple", len(outputs)), *(Slot() for _ in outputs))
        graph = Graph(tuple(self.inputs), tuple(self.nodes), loss, outputs, Structure(nodes))
        return Program(
            VERSION,
            tuple(_row(name, tensor) for name, tensor in self.parameters),
            tuple(_row(name, tensor) for name, tensor in self.buffers),
            rows,
            Batch(
                Structure((Seq("tuple", len(self.leaves)), *(Slot() for _ in self.leaves))),
                tuple(self.leaves),
            ),
            Graphs(graph, None) if mode == "train" else Graphs(None, graph),
            data,
        )

    def interpreter(self, loss: Ref | None, *outputs: Ref, limits: Limits = ROOMY) -> Interpreter:
        """The program through its bytes and back, ready to run."""
        mode = "train" if loss is not None else "eval"
        program = parse(encode(self.program(loss, *outputs, mode=mode)))
        return Interpreter(program, mode, constants.tensors(program), limits)

    def _input(self, kind: Any, index: int) -> Ref:
        assert not self.nodes, "inputs come first"
        self.inputs.append(Input(kind, index))
        return Ref(len(self.inputs) - 1)


def _row(name: str, tensor: Tensor) -> TensorRow:
    return TensorRow(name, cast(Any, NAMES[tensor.dtype]), tuple(tensor.shape), tensor.requires_grad)


def mlp(widths: list[int]) -> tuple[Builder, torch.nn.Sequential, Ref, Ref]:
    """Linear layers with ReLU between and cross-entropy after: builder, eager model, loss, scores."""
    layers: list[torch.nn.Module] = []
    for wide, narrow in pairwise(widths):
        layers += [torch.nn.Linear(wide, narrow), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers[:-1])
    build = Builder()
    weights = [build.parameter(parameter, name) for name, parameter in model.named_parameters()]
    x, y = build.leaf(torch.float32, None, widths[0]), build.leaf(torch.int64, None)
    for at in range(0, len(weights), 2):
        x = build.call("linear.default", x, weights[at], weights[at + 1])
        if at + 2 < len(weights):
            x = build.call("relu.default", x)
    return build, model, build.call("cross_entropy_loss.default", x, y), x


def single(key: str, args: Any, kwargs: Any) -> tuple[Program, list[Tensor], list[Tensor]]:
    """One call as a program whose tensors are buffers where written to, else batch tensors: it, buffers, leaves."""
    row = TABLE[key]
    build = Builder()
    named = [*zip([parameter.name for parameter in row.parameters], args, strict=False), *kwargs.items()]
    written = {id(value) for name, value in named if name in row.writes}
    tensors = {id(one): one for _, value in named for one in listed(value)}
    buffers = [one for at, one in tensors.items() if at in written]
    leaves = [one for at, one in tensors.items() if at not in written]
    refs = {id(one): build.buffer(one) for one in buffers}
    refs |= {id(one): build.leaf(one.dtype, *one.shape) for one in leaves}

    def swapped(value: Any) -> Any:
        if isinstance(value, Tensor):
            return refs[id(value)]
        if isinstance(value, str):
            return Equation(value) if "->" in value else Word(cast(Any, value))
        return [swapped(item) for item in value] if isinstance(value, list | tuple) else value

    made = build.call(key, *map(swapped, args), **{name: swapped(value) for name, value in kwargs.items()})
    if row.result is Result.NUMBER:
        made = build.call("full.default", [], made)
    elif row.result is Result.TENSORS:
        made = Ref(made.value, 0)
    return build.program(None, made, mode="eval"), buffers, leaves
