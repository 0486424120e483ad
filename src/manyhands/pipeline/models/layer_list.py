"""A layer list read: ``[(class, kwargs, shape | [shapes] | (shape, dtype)), ...]``.

::

    (nn.Linear,      {"in_features": 1, "out_features": 8},             (32, 1))          ── "0" ──▶ layer 1
    (wrapped_linear, {..., "out_variables": ["skip"]},                  (32, 8))          ── "skip" ──▶ 2, 3
    (nn.ReLU,        {},                                                (32, 8))          ── "2" ──▶ layer 3
    (wrapped_linear, {..., "dependencies": ["skip"]},                   [(32, 8), (32, 8)])

Shapes are of a layer's inputs, the main one first, then the named ones in order. A layer of torch publishes its
output under each name of its ``out_variables``; output and name are one edge, so that gradients meet as they do
in one process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from manyhands.errors import UsageError
from manyhands.pipeline.graph import BATCH, MAIN_INPUT, Graph, Layer
from manyhands.pipeline.models import drafts
from manyhands.pipeline.models.drafts import Draft
from manyhands.pipeline.models.entries import Entry, Shape
from manyhands.pipeline.models.reading import Reading
from manyhands.pipeline.models.shapes import Flow


def read_layers(layers: Sequence[Any]) -> Reading:
    """The reading of a layer list; UsageError names the layer at fault, and the other where there are two."""
    entries = [Entry.of(index, given) for index, given in enumerate(layers)]
    _check_names(entries)
    edges = _Edges(entries)
    made: list[Draft] = []
    read: list[Layer] = []
    for entry in entries:
        names, flows = edges.taken(entry)
        draft = drafts.draft(entry, flows)
        outputs = edges.make(entry, draft)
        made.append(draft)
        read.append(Layer(entry.index, str(entry.index), names, outputs))
    edges.check_in_place()

    def weights_of(index: int) -> Mapping[str, Tensor]:
        return made[index].weights()

    made[-1].outputs[0].check(f"what {entries[-1]} gives")
    graph = Graph(tuple(read), edges.edges(), read[-1].outputs[0])
    return Reading(graph, tuple(one.recipe for one in made), weights_of)


def _check_names(entries: Sequence[Entry]) -> None:
    producers: dict[str, Entry] = {}
    for entry in entries:
        for name in entry.produced:
            if name == MAIN_INPUT or name.isdecimal():
                raise UsageError(f"{entry} produces {name!r}, a name that the pipeline uses: choose another")
            if name in producers:
                raise UsageError(
                    f"{name!r} is produced by {producers[name]} and by {entry}: rename one of them"
                )
            producers[name] = entry
    for entry in entries:
        for name in entry.consumed:
            if name in producers and producers[name].index >= entry.index:
                raise UsageError(
                    f"{entry} consumes {name!r}, which {producers[name]} produces only after it: layers compute in "
                    "the order of the list, so move one of them"
                )


@dataclass
class _Value:
    """One edge so far."""

    name: str
    producer: int
    flow: Flow
    consumers: list[int]


class _Edges:
    """The edges made so far, by every name that they have."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._entries = entries
        first = entries[0].shapes[0]
        self._batch_size = first.sizes[0]
        main = Flow.of_batch(first.sizes[1:], first.dtype or torch.get_default_dtype())
        self._main = _Value(MAIN_INPUT, BATCH, main, [])
        self._named = {MAIN_INPUT: self._main}

    def taken(self, entry: Entry) -> tuple[tuple[str, ...], list[Flow]]:
        """The edges that `entry` takes, and what flows in them, checked against the shapes it declares."""
        values = [self._main]
        self._check(entry, entry.shapes[0], self._main, "its main input")
        for at, name in enumerate(entry.consumed, 1):
            declared = entry.shapes[at] if at < len(entry.shapes) else None
            if name not in self._named:
                self._named[name] = _Value(name, BATCH, self._extra(entry, name, declared), [])
            if declared is not None:
                self._check(entry, declared, self._named[name], repr(name))
            values.append(self._named[name])
        for value in values:
            value.consumers.append(entry.index)
        return tuple(value.name for value in values), [value.flow for value in values]

    def make(self, entry: Entry, draft: Draft) -> tuple[str, ...]:
        """Register what `entry` makes; the names of its edges, the main one first."""
        names: list[str] = []
        for flow, aliases in zip(draft.outputs, draft.names, strict=True):
            name = aliases[0] if aliases else str(entry.index)
            value = _Value(name, entry.index, flow, [])
            self._named |= dict.fromkeys((name, *aliases), value)
            names.append(name)
        self._main = self._named[names[0]]
        return tuple(names)

    def check_in_place(self) -> None:
        """UsageError where a layer would write into a value that another layer takes as well."""
        for value in self._named.values():
            writers = [self._entries[index] for index in value.consumers if self._entries[index].writes]
            if writers and len(value.consumers) > 1:
                raise UsageError(
                    f"{writers[0]} works in place on {value.name!r}, which layers {value.consumers} take: use "
                    "inplace=False there"
                )

    def edges(self) -> tuple[Any, ...]:
        """All edges, those of the batch first."""
        distinct = sorted(
            {id(one): one for one in self._named.values()}.values(), key=lambda one: one.producer
        )
        return tuple(one.flow.edge(one.name, one.producer, one.consumers) for one in distinct)

    def _extra(self, entry: Entry, name: str, declared: Shape | None) -> Flow:
        if declared is None:
            raise UsageError(
                f"{entry} consumes {name!r}, which no layer before it produces. If it comes in with the batch, its "
                "shape must be given: [main shape, shape of each name]"
            )
        dtype = declared.dtype or torch.get_default_dtype()
        if declared.sizes and declared.sizes[0] == self._batch_size:
            return Flow.of_batch(declared.sizes[1:], dtype)
        return Flow.of_all(declared.sizes, dtype)

    def _check(self, entry: Entry, declared: Shape, value: _Value, what: str) -> None:
        whole = tuple(value.flow.low.shape)
        chains = declared.sizes[1:] == whole[1:] and len(declared.sizes) == len(whole)
        if not chains or declared.dtype not in (None, value.flow.low.dtype):
            source = "the batch" if value.producer < 0 else str(self._entries[value.producer])
            raise UsageError(
                f"shapes do not chain: {entry} declares {declared} for {what}, and {source} gives {value.flow}"
            )
