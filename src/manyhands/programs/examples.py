"""The batches a program is captured from: which dimensions may vary, and whether the trace let them.

The first dimension of a tensor is the samples' where it is as long as the batch's first tensor; it may always
vary. Any other dimension may where it differs between the batches. Export takes no size below 2 for one that
varies, so a batch of a single sample is traced with its row twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast, get_args

import torch
from torch import SymInt, Tensor
from torch.export import ExportedProgram

from manyhands.errors import CaptureFailed, UsageError
from manyhands.programs.format import Batch, DtypeName, LeafRow
from manyhands.programs.tracing import WAY_OUT
from manyhands.tensors import dtypes, flatten
from manyhands.tensors.structure import Slot, Structure

_DTYPES: Final = frozenset(get_args(DtypeName))


@dataclass(frozen=True)
class Examples:
    """`leaves` are the tensors of each batch; `dynamic` the dimensions of each tensor that may vary."""

    structure: Structure
    leaves: Sequence[Sequence[Tensor]]
    dynamic: Sequence[frozenset[int]]

    @staticmethod
    def of(batches: Sequence[Any]) -> Examples:
        """UsageError where the batches are none, hold no tensors, or differ in anything but sizes."""
        if not batches:
            raise UsageError("a model is captured from batches, and none was given")
        structures, leaves = zip(*(flatten(batch) for batch in batches), strict=True)
        first: Structure = structures[0]
        kinds = [[(leaf.dtype, leaf.ndim) for leaf in tensors] for tensors in leaves]
        if any(structure != first for structure in structures) or any(kind != kinds[0] for kind in kinds):
            raise CaptureFailed(
                "the batches differ in more than sizes (keys, plain numbers or strings, dtypes, numbers of "
                f"dimensions), and a program takes one form: make them alike in collate_fn, {WAY_OUT}"
            )
        if not kinds[0] or any(isinstance(node, Slot) and node.kind != "tensor" for node in first.nodes):
            raise CaptureFailed(
                f"a program takes batches of tensors only: convert them in collate_fn, {WAY_OUT}"
            )
        for dtype, _ in kinds[0]:
            if dtypes.NAMES[dtype] not in _DTYPES:
                raise CaptureFailed(
                    f"the batch holds {dtype}, which no program takes: cast it in collate_fn, {WAY_OUT}"
                )
        return Examples(first, leaves, [frozenset(_dynamic(leaves, at)) for at in range(len(kinds[0]))])

    @property
    def largest(self) -> list[Tensor]:
        """The tensors to trace with: of the batch with most elements, two rows at least."""
        leaves = max(self.leaves, key=lambda tensors: sum(leaf.numel() for leaf in tensors))
        return [
            torch.cat([leaf, leaf]) if 0 in dims and leaf.shape[0] == 1 else leaf
            for leaf, dims in zip(leaves, self.dynamic, strict=True)
        ]

    def row(self) -> Batch:
        """What a batch must be, for the program."""
        return Batch(
            self.structure,
            tuple(
                LeafRow(
                    cast(DtypeName, dtypes.NAMES[leaf.dtype]),
                    tuple(None if dim in dims else size for dim, size in enumerate(leaf.shape)),
                )
                for leaf, dims in zip(self.leaves[0], self.dynamic, strict=True)
            ),
        )

    def check(self, exported: ExportedProgram) -> None:
        """CaptureFailed where the model's code fixes or bounds a dimension that varies."""
        nodes = {node.name: node for node in exported.graph.nodes if node.op == "placeholder"}
        for at, name in enumerate(exported.graph_signature.user_inputs):
            for dim in self.dynamic[at]:
                size = nodes[str(name)].meta["val"].shape[dim]
                sizes = {leaves[at].shape[dim] for leaves in self.leaves}
                what = "the number of samples" if dim == 0 else f"dimension {dim}"
                if not isinstance(size, SymInt) or size.node.maybe_as_int() is not None:
                    raise CaptureFailed(
                        f"{what} of batch tensor {at} varies ({_listed(sizes)} seen), and the model's code fixes it "
                        f"to {size}: use sizes from x.shape in it, not numbers or loops over them, {WAY_OUT}"
                    )
                low, high = _bounds(exported, size)
                if any(not low <= max(seen, 2) <= high for seen in sizes) or (dim == 0 and high < math.inf):
                    raise CaptureFailed(
                        f"{what} of batch tensor {at} varies ({_listed(sizes)} seen), and the model's code branches "
                        f"on it: this way is for {low} to {high:.0f}; remove the branch, {WAY_OUT}"
                    )


def _dynamic(batches: Sequence[Sequence[Tensor]], at: int) -> Iterator[int]:
    shapes = [leaves[at].shape for leaves in batches]
    for dim in range(len(shapes[0])):
        is_samples = dim == 0 and all(
            leaves[at].shape[0] == leaves[0].shape[:1].numel() for leaves in batches
        )
        if is_samples or len({shape[dim] for shape in shapes}) > 1:
            yield dim


def _bounds(exported: ExportedProgram, size: SymInt) -> tuple[int, float]:
    bounds = exported.range_constraints.get(size.node.expr)
    if bounds is None:  # a multiple of another dimension, which has its own
        return 0, math.inf
    return int(bounds.lower), int(bounds.upper) if bounds.upper.is_Integer else math.inf


def _listed(sizes: set[int]) -> str:
    return ", ".join(map(str, sorted(sizes)))
