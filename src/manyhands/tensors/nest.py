"""Nested batches and states as two plain things: a structure, and the tensors in order.

What a tree may hold is decided here, on the sender's side, where an error can still name the place by its
path. Knows nothing of bytes or frames; what a received structure may be is `structure`'s to judge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor

from manyhands.errors import UsageError
from manyhands.tensors import dtypes
from manyhands.tensors.rows import field_problem
from manyhands.tensors.structure import (
    MAX_DEPTH,
    MAX_NODES,
    Node,
    Row,
    Scalar,
    Seq,
    Slot,
    Structure,
    Table,
    check,
    rebuild,
)

_ADVICE: Final = (
    "only tensors, numpy arrays, None, bool, int, float, str, and dicts, lists and tuples of those can "
    "travel; convert it in the dataset or its collate_fn"
)

Path = tuple[Any, ...]
"""The way from the root, innermost last; text is made of it only for an error."""


def flatten(tree: Any, name: str = "batch") -> tuple[Structure, list[Tensor]]:
    """Take `tree` apart into its structure and its tensors, in order; no tensor is copied.

    A tree is a tensor, numpy array or number, None, bool, int (64 bits), float or str, or a dict, list,
    tuple or named tuple of trees; any Mapping counts as a dict. UsageError names what else it holds, by
    its path from `name`, and refuses what is nested deeper than 32 or has over a million nodes.
    """
    walk = _Flattening(name)
    walk.add(tree, ())
    return Structure(tuple(walk.nodes)), walk.tensors


def unflatten(structure: Structure, tensors: Sequence[Tensor]) -> Any:
    """The tree again: dicts, lists, tuples, and NamedRow for every named tuple.

    ProtocolError where the structure contradicts itself or the number and dtypes of `tensors`.
    """
    check(structure, [(tensor.dtype, tensor.dim()) for tensor in tensors])
    return rebuild(structure, tensors)


class _Flattening:
    """One walk over a tree: the nodes and tensors met so far."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.nodes: list[Node] = []
        self.tensors: list[Tensor] = []

    def add(self, value: Any, path: Path) -> None:
        if len(self.nodes) >= MAX_NODES:
            raise UsageError(f"{self.name} has more than {MAX_NODES:,} nodes; put its numbers into tensors")
        if isinstance(value, Tensor):
            self._add_tensor(value, "tensor", path)
        elif isinstance(value, np.ndarray | np.number | np.bool_):  # np.float64 is a float too
            self._add_array(value, path)
        elif value is None or isinstance(value, bool | int | float | str):
            self.nodes.append(self._scalar(value, path))
        else:
            self._add_container(value, path)

    def _add_container(self, value: Any, path: Path) -> None:
        if not isinstance(value, Mapping | list | tuple):
            raise self._unsupported(value, path, _ADVICE)
        if len(path) >= MAX_DEPTH:
            raise UsageError(
                f"{self.name} is nested deeper than {MAX_DEPTH} at {self._text(path)}; flatten it"
            )
        if isinstance(value, Mapping):
            self._add_table(value, path)
            return
        self.nodes.append(self._sequence(value, path))
        for at, item in enumerate(value):
            self.add(item, (*path, at))

    def _add_table(self, value: Mapping[Any, Any], path: Path) -> None:
        for key in value:
            if key is not None and type(key) not in (bool, int, float, str):
                advice = "keys must be str, int, float, bool or None"
                raise self._unsupported(key, path, advice, what=f"the key {key!r} of ")
        keys = tuple(self._scalar(key, path) for key in value)
        self.nodes.append(Table(keys))
        for key in keys:
            self.add(value[key], (*path, key))

    def _sequence(self, value: list[Any] | tuple[Any, ...], path: Path) -> Node:
        fields = getattr(value, "_fields", None) if isinstance(value, tuple) else None
        if not isinstance(fields, tuple) or not all(isinstance(name, str) for name in fields):
            return Seq("list" if isinstance(value, list) else "tuple", len(value))
        if problem := field_problem(fields):
            raise UsageError(f"{self._text(path)}: {problem}")
        return Row(fields)

    def _add_tensor(self, tensor: Tensor, kind: Literal["tensor", "array", "number"], path: Path) -> None:
        if tensor.dtype not in dtypes.NAMES:
            raise self._unsupported(
                tensor, path, f"elements of {tensor.dtype} cannot travel; dequantize or cast it"
            )
        if tensor.layout is not torch.strided or tensor.is_nested:
            raise self._unsupported(tensor, path, f"it is {tensor.layout}; make it dense with .to_dense()")
        if tensor.is_meta:
            raise self._unsupported(tensor, path, "it is on the meta device and has no values to send")
        self.nodes.append(Slot(kind))
        self.tensors.append(tensor)

    def _add_array(self, value: Any, path: Path) -> None:
        if isinstance(value, np.ndarray) and type(value) not in (np.ndarray, np.memmap):
            raise self._unsupported(
                value, path, "send a plain numpy array (np.asarray) and what it leaves out beside it"
            )
        array = np.asarray(value)
        native = array.dtype.newbyteorder("=")
        if native not in dtypes.NUMPY.values():
            raise self._unsupported(
                value, path, f"elements of {array.dtype} cannot travel; convert it to numbers"
            )
        if array.dtype != native or not array.flags.writeable or any(step < 0 for step in array.strides):
            # torch takes none of these as they are; it would warn of a read-only one.
            array = array.astype(native, order="K", copy=True)
        if any(step % array.itemsize or step < 0 for step in array.strides):
            array = np.ascontiguousarray(array).reshape(array.shape)
        kind: Literal["array", "number"] = "array" if isinstance(value, np.ndarray) else "number"
        self._add_tensor(torch.from_numpy(array), kind, path)

    def _scalar(self, value: Any, path: Path) -> Scalar:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            text = str.__str__(value)
            if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
                raise self._unsupported(
                    value, path, "it holds half a surrogate pair, which UTF-8 cannot carry"
                )
            return text
        if isinstance(value, float):
            return float(value)
        if not -(2**63) <= value < 2**64:
            raise self._unsupported(
                value, path, "whole numbers must fit 64 bits; send it as text or a tensor"
            )
        return int(value)

    def _unsupported(self, value: Any, path: Path, advice: str, what: str = "") -> UsageError:
        return UsageError(f"{what}{self._text(path)} is a {type(value).__name__}: {advice}")

    def _text(self, path: Path) -> str:
        return self.name + "".join(f"[{key!r}]" for key in path)
