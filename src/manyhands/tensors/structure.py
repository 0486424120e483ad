"""The shape of a nested batch as plain data, and the judge of one that was received.

A tree is written down root first, each container saying how many items follow::

    {"x": tensor, "y": (tensor, 3)}   ->   Table("x", "y")  Slot  Seq(tuple, 2)  Slot  3

A flat list has no depth to exhaust a stack with, and its length is bounded before it is built. What is
received is checked whole by :func:`check` before :func:`rebuild` makes a single object. Knows nothing of
bytes, frames, or how a tree is taken apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
import torch
from msgspec import Meta
from torch import Tensor

from manyhands.errors import ProtocolError
from manyhands.tensors import dtypes
from manyhands.tensors.rows import MAX_FIELDS, field_problem, row_class

MAX_DEPTH: Final = 32
MAX_NODES: Final = 1_000_000

Scalar = None | bool | int | float | str
Leaf = tuple[torch.dtype, int]
"""What :func:`check` must know of a tensor: its dtype and its number of dimensions."""


class Slot(msgspec.Struct, frozen=True, array_like=True, tag="t", forbid_unknown_fields=True):
    """The next tensor stands here; it goes back as a tensor, a numpy array or a numpy number."""

    kind: Literal["tensor", "array", "number"] = "tensor"


class Seq(msgspec.Struct, frozen=True, array_like=True, tag="s", forbid_unknown_fields=True):
    """A list or tuple of the next `length` subtrees."""

    kind: Literal["list", "tuple"]
    length: Annotated[int, Meta(ge=0, le=MAX_NODES)]


class Row(msgspec.Struct, frozen=True, array_like=True, tag="r", forbid_unknown_fields=True):
    """A named tuple of as many subtrees as it has fields."""

    fields: Annotated[tuple[str, ...], Meta(max_length=MAX_FIELDS)]


class Table(msgspec.Struct, frozen=True, array_like=True, tag="d", forbid_unknown_fields=True):
    """A dict of as many subtrees as it has keys, in that order."""

    keys: Annotated[tuple[Scalar, ...], Meta(max_length=MAX_NODES)]


Node = None | bool | int | float | str | Slot | Seq | Row | Table


class Structure(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A tree without its tensors, root first; :func:`flatten` makes it and :func:`unflatten` reads it."""

    nodes: Annotated[tuple[Node, ...], Meta(min_length=1, max_length=MAX_NODES)]


def check(structure: Structure, leaves: Sequence[Leaf]) -> None:
    """Raise ProtocolError unless `structure` is one whole tree over exactly `leaves`."""
    slots: list[Slot] = []
    open_items = [1]  # how many subtrees each open container still lacks; the root lacks one
    for at, node in enumerate(structure.nodes):
        while open_items and open_items[-1] == 0:
            open_items.pop()
        if not open_items:
            raise ProtocolError(
                f"a structure goes on after its tree ended at node {at} of {len(structure.nodes)}"
            )
        open_items[-1] -= 1
        if isinstance(node, Slot):
            slots.append(node)
        elif isinstance(node, Seq | Row | Table):
            open_items.append(_num_items(node))
            if len(open_items) > MAX_DEPTH + 1:
                raise ProtocolError(f"a structure is nested deeper than {MAX_DEPTH}")
    if any(open_items):
        raise ProtocolError(f"a structure of {len(structure.nodes)} nodes ends {sum(open_items)} items early")
    _check_slots(slots, leaves)


def rebuild(structure: Structure, tensors: Sequence[Tensor]) -> Any:
    """As :func:`unflatten`, for a structure and tensors that passed :func:`check`."""
    return _built(iter(structure.nodes), iter(tensors))


def _num_items(node: Seq | Row | Table) -> int:
    if isinstance(node, Seq):
        return node.length
    if isinstance(node, Table):
        if len(set(node.keys)) != len(node.keys):
            raise ProtocolError(f"a dict of {len(node.keys)} keys has one of them twice")
        return len(node.keys)
    if problem := field_problem(node.fields):
        raise ProtocolError(problem)
    return len(node.fields)


def _check_slots(slots: list[Slot], leaves: Sequence[Leaf]) -> None:
    if len(slots) != len(leaves):
        raise ProtocolError(f"a structure has room for {len(slots)} tensors, and {len(leaves)} came with it")
    for slot, (dtype, num_dims) in zip(slots, leaves, strict=True):
        if slot.kind != "tensor" and dtype not in dtypes.NUMPY:
            raise ProtocolError(f"a numpy {slot.kind} is announced as {dtype}, which numpy does not have")
        if slot.kind == "number" and num_dims:
            raise ProtocolError(f"a number is announced with {num_dims} dimensions")


def _built(nodes: Iterator[Node], tensors: Iterator[Tensor]) -> Any:
    node = next(nodes)
    match node:
        case Slot():
            return _leaf(node, next(tensors))
        case Seq(kind="list"):
            return [_built(nodes, tensors) for _ in range(node.length)]
        case Seq():
            return tuple([_built(nodes, tensors) for _ in range(node.length)])
        case Row():
            return row_class(node.fields)(*[_built(nodes, tensors) for _ in node.fields])
        case Table():
            return {key: _built(nodes, tensors) for key in node.keys}
        case _:
            return node


def _leaf(slot: Slot, tensor: Tensor) -> Any:
    if slot.kind == "tensor":
        return tensor
    array = tensor.numpy()
    return array if slot.kind == "array" else array[()]
