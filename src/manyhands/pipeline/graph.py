"""A model as layers and named edges: what every other file of this mode speaks about.

::

    batch ──▶ layer 0 ──▶ layer 1 ──▶ layer 2 ──▶ prediction
                 └────── skip "a" ──────▲

Layers stand in the order in which they compute. An edge has one producer and any number of consumers, on any
layer behind it. Pure data: no tensors, no torch modules, no placement on machines.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from manyhands.tensors.dtypes import DTYPES

BATCH = -1
"""The producer of edges that come in with the batch: the main input and the named extras."""

MAIN_INPUT = "input"
"""The edge by which the batch's main input comes in; an extra's edge has the extra's name."""


@dataclass(frozen=True)
class Edge:
    """One named value that flows between layers."""

    name: str
    producer: int
    """Index of the layer that makes it, or `BATCH`."""
    consumers: tuple[int, ...]
    """Indices of the layers that take it, ascending; a layer that takes it twice stands here twice."""
    shape: tuple[int, ...]
    """Shape of one sample, without the batch dimension."""
    dtype: str
    """Name as in `manyhands.tensors.dtypes`."""
    has_gradient: bool
    """False for masks, integers and everything that comes in with the batch."""
    batched: bool = True
    """False where the first dimension is not the batch's (a table of positions, a causal mask): `shape` is then
    the whole one, and each micro-batch takes all of it."""
    grows: int | None = None
    """The dimension of `shape` that is the larger the more samples there are, where none of its own is the batch's: a
    recurrent layer's state has it second, rows of all samples stand in one dimension."""

    def sizes(self, samples: int) -> tuple[int, ...]:
        """The whole shape of `samples` samples."""
        if not self.batched:
            return self.shape
        if self.grows is None:
            return (samples, *self.shape)
        return tuple(size * samples if dim == self.grows else size for dim, size in enumerate(self.shape))

    @property
    def bytes_per_sample(self) -> int:
        """What one sample of it takes on its way; of an edge that is not batched, all of it."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class Layer:
    """One step of the model: what it takes, what it makes, and how to build it elsewhere."""

    index: int
    name: str
    """What errors and tables call it: "0" in a layer list, "encoder.1" in a module."""
    inputs: tuple[str, ...]
    """Edges it takes, in the order of its `forward`."""
    outputs: tuple[str, ...]
    """Edges it makes; the first is what the next layer takes as its main input."""


@dataclass(frozen=True)
class Graph:
    """A whole model. Tied parameters are listed once each, owner first."""

    layers: tuple[Layer, ...]
    edges: tuple[Edge, ...]
    prediction: str
    """The edge that the loss is taken of."""
    ties: tuple[tuple[str, ...], ...] = ()
    """Groups of parameter names (as in the `state_dict`) that are one parameter.

    A name that several layers hold is one parameter too, without standing here.
    """

    def edge(self, name: str) -> Edge:
        """The edge of that name, which there is."""
        return next(edge for edge in self.edges if edge.name == name)
