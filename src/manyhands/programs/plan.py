"""What a dry run finds: the calls of a graph with every number filled in, and what they cost.

Plain values between the dry run, which makes them, and the assembly and the limits, which read them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from manyhands.programs.operators.row import Row

Leaf = tuple[torch.dtype, tuple[int, ...]]
"""A batch tensor's dtype and shape."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a machine lends to a program: bytes of all values, operations of one forward, nodes of a graph."""

    bytes: int
    flops: int
    nodes: int


@dataclass(frozen=True, slots=True)
class Cost:
    """What one forward takes: `bytes` of inputs, results and workspaces, floating-point operations."""

    bytes: int
    flops: int


@dataclass(frozen=True, slots=True)
class Call:
    """One node with its numbers filled in: a Ref is a tensor that is still open, all else is final."""

    row: Row
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    value: int


@dataclass(frozen=True, slots=True)
class Plan:
    """A graph for one set of batch shapes: the calls in order, and what they cost."""

    calls: tuple[Call, ...]
    cost: Cost
