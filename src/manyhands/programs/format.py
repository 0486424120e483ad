"""What a model looks like as data: numbered nodes over a closed list of operators, and nothing that is code.

::

    Program ── parameters, buffers     names, dtypes, shapes: the values travel elsewhere
            ├─ constants ── data       small tensors lifted out of the graph, raw
            ├─ batch                   the tree a batch is, and what each of its tensors must be
            └─ graphs "train" "eval"
                 inputs   0 … k-1      parameter i | buffer i | constant i | batch tensor i
                 nodes    k … n-1      operator, arguments: each refers to EARLIER values only
                 loss, outputs, mutations

Values are numbered, inputs first, then one a node; :class:`Ref` names one by its number, and one of several
results by its place. Sizes that depend on the batch are values too (``sym_size.int``, ``int.mul``). MessagePack,
arrays only, so the same program has the same bytes. This module knows shapes of messages; what the numbers may
be is the parser's to judge, what an operator takes is its row's.

Encoded, a header says how long the control part is; the constants' bytes follow it as they are.
"""

from __future__ import annotations

import struct
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from manyhands.tensors import Structure

VERSION: Final = 1
MAGIC: Final = b"MHPG"
HEADER: Final = struct.Struct("<4sII")
"""Magic, version, bytes of the control part; that follows in MessagePack, then the constants' raw bytes."""
MAX_CONTROL_BYTES: Final = 1 << 19
"""Of an encoded program, its constants' bytes aside; GPT-2 of 12 layers takes 30 KiB."""
MAX_CONSTANT_BYTES: Final = 64 << 20
MAX_TENSORS: Final = 20_000
MAX_CONSTANTS: Final = 4_096
MAX_NODES: Final = 8_192
MAX_ARGUMENTS: Final = 24
"""Of one node, positional and by keyword each."""
MAX_ITEMS: Final = 512
MAX_ELEMENTS: Final = 1 << 40
MAX_INT: Final = (1 << 63) - 1
"""ATen writes "to the end" as the largest int64; every other number is bounded by its row."""

DtypeName = Literal[
    "bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64"
]
Approximation = Literal["none", "tanh"]
Rounding = Literal["floor", "trunc"]
Indexing = Literal["ij", "xy"]
Padding = Literal["constant", "reflect", "replicate", "circular", "same", "valid"]
WordName = Approximation | Rounding | Indexing | Padding
MemoryFormatName = Literal["contiguous_format", "preserve_format", "channels_last", "channels_last_3d"]

Index = Annotated[int, Meta(ge=0, le=MAX_TENSORS + MAX_CONSTANTS + MAX_NODES)]
Size = Annotated[int, Meta(ge=0, le=MAX_ELEMENTS)]
Name = Annotated[str, Meta(max_length=512, pattern="^[A-Za-z0-9_.:/ -]*$")]
"""A tensor's name. It keys nothing but dicts; what no module is called has no business in it all the same."""


class _Part(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """A piece of a program: an array, decoded strictly. Pieces cannot form circles, so none is tracked for them."""


class TensorRow(_Part, frozen=True):
    """A parameter or buffer. `aliases` are the other names of a tied one; it travels once, as `name`."""

    name: Name
    dtype: DtypeName
    shape: Annotated[tuple[Size, ...], Meta(max_length=8)]
    requires_grad: bool = False
    aliases: Annotated[tuple[Name, ...], Meta(max_length=64)] = ()


class ConstantRow(_Part, frozen=True):
    """A constant; its bytes lie in ``Program.data`` at the next multiple of 64, contiguous, little-endian."""

    dtype: DtypeName
    shape: Annotated[tuple[Size, ...], Meta(max_length=8)]


class LeafRow(_Part, frozen=True):
    """A tensor of the batch; None is a dimension that may differ from batch to batch."""

    dtype: DtypeName
    shape: Annotated[tuple[Size | None, ...], Meta(max_length=8)]


class Batch(_Part, frozen=True):
    """The tree of a batch, and its tensors in the tree's order."""

    structure: Structure
    leaves: Annotated[tuple[LeafRow, ...], Meta(max_length=256)]


class Ref(_Part, frozen=True, tag="v"):
    """An earlier value; `element` where the operator that made it returns several, else None."""

    value: Index
    element: Annotated[int, Meta(ge=0, lt=MAX_ITEMS)] | None = None


class Dtype(_Part, frozen=True, tag="d"):
    """An element type."""

    name: DtypeName


class Word(_Part, frozen=True, tag="w"):
    """A word that some operator takes."""

    name: WordName


class MemoryFormat(_Part, frozen=True, tag="m"):
    """An order of elements in memory."""

    name: MemoryFormatName


class Equation(_Part, frozen=True, tag="e"):
    """An einsum's equation, with its arrow: ``"bhqd,bhkd->bhqk"``; letters only, no ellipsis."""

    text: Annotated[str, Meta(max_length=64, pattern="^[a-zA-Z]*(,[a-zA-Z]*)*->[a-zA-Z]*$")]


Atom = None | bool | int | float | Ref | Dtype | Word | MemoryFormat


class Items(_Part, frozen=True, tag="l"):
    """A short list of sizes, of tensors, or of tensors and None; lists do not nest."""

    items: Annotated[tuple[Atom, ...], Meta(max_length=MAX_ITEMS)]


Argument = None | bool | int | float | Ref | Dtype | Word | MemoryFormat | Equation | Items
OperatorKey = Annotated[str, Meta(max_length=64)]
"""``"add.Tensor"``: an ATen name and overload; ``"int.mul"``: arithmetic on sizes."""


class Keyword(_Part, frozen=True):
    """An argument by its parameter's name in the operator's schema."""

    name: Annotated[str, Meta(max_length=32)]
    value: Argument


class Node(_Part, frozen=True):
    """One call. Devices and layouts never travel: results are made where the inputs are."""

    operator: OperatorKey
    args: Annotated[tuple[Argument, ...], Meta(max_length=MAX_ARGUMENTS)] = ()
    kwargs: Annotated[tuple[Keyword, ...], Meta(max_length=MAX_ARGUMENTS)] = ()


class Input(_Part, frozen=True):
    """Where a graph's next input comes from."""

    kind: Literal["parameter", "buffer", "constant", "batch"]
    index: Index


class Mutation(_Part, frozen=True):
    """After a run, this buffer takes this value. Operators that write in place need none."""

    buffer: Index
    value: Ref


class Graph(_Part, frozen=True):
    """One way through the model: its nodes in order, and what comes out.

    `structure` is the tree of the model's output over `outputs`; a `loss` is a value of one element.
    """

    inputs: Annotated[tuple[Input, ...], Meta(max_length=MAX_TENSORS + MAX_CONSTANTS)]
    nodes: Annotated[tuple[Node, ...], Meta(max_length=MAX_NODES)]
    loss: Ref | None
    outputs: Annotated[tuple[Ref, ...], Meta(max_length=MAX_ITEMS)]
    structure: Structure
    mutations: Annotated[tuple[Mutation, ...], Meta(max_length=MAX_TENSORS)] = ()


class Graphs(_Part, frozen=True):
    """The two modes a module has; a program may lack one, not both."""

    train: Graph | None
    eval: Graph | None


class Program(_Part, frozen=True):
    """A model, its loss, and what both take, as data. :func:`encode` writes it; `parser` reads it."""

    version: Annotated[int, Meta(ge=0, le=1 << 16)]
    parameters: Annotated[tuple[TensorRow, ...], Meta(max_length=MAX_TENSORS)]
    buffers: Annotated[tuple[TensorRow, ...], Meta(max_length=MAX_TENSORS)]
    constants: Annotated[tuple[ConstantRow, ...], Meta(max_length=MAX_CONSTANTS)]
    batch: Batch
    graphs: Graphs
    data: Annotated[bytes, Meta(max_length=MAX_CONSTANT_BYTES)] = b""


def encode(program: Program) -> bytes:
    """The bytes of `program`: equal programs, equal bytes."""
    control = msgspec.msgpack.encode(msgspec.structs.replace(program, data=b""))
    return b"".join((HEADER.pack(MAGIC, program.version, len(control)), control, program.data))
