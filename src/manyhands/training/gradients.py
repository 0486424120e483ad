r"""Partial sums of a step: what a leaf yields, and how two halves become one.

::

            root            the step's sum, divided once by the sum of weights
           /    \\
         2        3         a lease is a set of aligned subtrees
        / \\      / \\
       4   5    6   7       leaf j is weight x gradient (+ the buffers it left behind)

The additions happen in the tree's order whoever computes what, so the sum has the same bits for one node or a
hundred. The first term is copied, never added to zeros (0.0 + -0.0 is 0.0), and a parameter without a
gradient in a leaf contributes nothing: None is the identity. Sums are fp32 whatever the parameter's dtype,
fp64 for fp64.

One partial sum is one flat body, so that a transfer, an addition and a check are each one call. Knows nothing
of who computed it.
"""

from __future__ import annotations

import cmath
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from manyhands.errors import ProtocolError
from manyhands.tensors.layout import Layout
from manyhands.tensors.memory import bytes_of
from manyhands.training.buffers import Fold
from manyhands.training.state import ModelState

SMALL_BYTES = 1 << 20
"""A body of up to so many bytes stays in the processor's cache: there fewer calls count, not fewer passes."""


class Region(NamedTuple):
    """A run of same-typed, same-folded tensors: bytes [start, stop) of the body, padding (zeros) included."""

    dtype: torch.dtype
    fold: Fold | None
    start: int
    stop: int


class SumBuffer(NamedTuple):
    """Memory for one partial sum: the body (uint8, aligned), its tensors, its regions as flat tensors, its bytes.

    Made once and used again, so that the views are not made for every leaf.
    """

    body: Tensor
    views: list[Tensor]
    regions: list[tuple[Region, Tensor]]
    bytes: memoryview


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that gradients of `dtype` are summed in."""
    if dtype in (torch.float64, torch.complex64, torch.complex128):
        return dtype
    return torch.float32


@dataclass(frozen=True)
class GradientLayout:
    """Where gradients and mutated buffers lie in a partial sum's body."""

    layout: Layout
    parameters: tuple[str, ...]
    folds: Mapping[str, Fold]
    regions: tuple[Region, ...]
    everyone: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "everyone", (1 << len(self.parameters)) - 1)

    @classmethod
    def of(cls, state: ModelState, folds: Mapping[str, Fold]) -> GradientLayout:
        """The layout for a model whose buffers named in `folds` are mutated by training."""
        rows: list[tuple[str, torch.dtype, Fold | None, tuple[int, ...]]] = [
            (name, sum_dtype(p.dtype), None, tuple(p.shape)) for name, p in state.trainable.items()
        ]
        rows += [
            (name, state.buffers[name].dtype, fold, tuple(state.buffers[name].shape))
            for name, fold in folds.items()
        ]
        # Stable: parameters of one dtype keep parameters() order, then buffers by fold.
        rows.sort(key=lambda row: (row[2] or "", str(row[1])))
        layout = Layout.of(
            (name, torch.empty(shape, dtype=dtype, device="meta")) for name, dtype, _, shape in rows
        )
        parameters = tuple(name for name, _, fold, _ in rows if fold is None)
        return cls(layout, parameters, dict(folds), _regions(layout, dict(folds)))

    def allocate(self) -> SumBuffer:
        """A buffer of zeros; its padding must stay zero, since whole regions are added and checked."""
        body = self.layout.allocate().zero_()
        regions = [(region, body[region.start : region.stop].view(region.dtype)) for region in self.regions]
        return SumBuffer(body, self.layout.views(body), regions, bytes_of(body))


def _regions(layout: Layout, folds: Mapping[str, Fold]) -> tuple[Region, ...]:
    regions: list[Region] = []
    ends = [*layout.offsets[1:], layout.num_bytes]
    for spec, start, stop in zip(layout.specs, layout.offsets, ends, strict=True):
        fold = folds.get(spec.name)
        last = regions[-1] if regions else None
        if last is not None and (last.dtype, last.fold) == (spec.dtype, fold):
            regions[-1] = last._replace(stop=stop)
        else:
            regions.append(Region(spec.dtype, fold, start, stop))
    return tuple(regions)


@dataclass
class Partial:
    """One partial sum: a body, and which parameters have a gradient in it (bit i: ``parameters[i]``)."""

    buffer: SumBuffer
    present: int


def combine(layout: GradientLayout, left: Partial, right: Partial) -> Partial:
    """The sum of two neighbouring subtrees, in `left`'s buffer; `right`'s may be reused afterwards.

    ProtocolError where buffers that must agree do not.
    """
    is_dense = left.present == right.present == layout.everyone
    if not is_dense:
        _combine_sparse(layout, left, right)
    for (region, mine), (_, theirs) in zip(left.buffer.regions, right.buffer.regions, strict=True):
        if region.fold is Fold.MEAN or (region.fold is None and is_dense):
            mine.add_(theirs)
        elif region.fold is Fold.AGREE and not torch.equal(mine, theirs):
            raise ProtocolError(_disagreement(layout, left, right))
    return Partial(left.buffer, left.present | right.present)


def _combine_sparse(layout: GradientLayout, left: Partial, right: Partial) -> None:
    for index in range(len(layout.parameters)):
        bit = 1 << index
        if right.present & bit:
            mine, theirs = left.buffer.views[index], right.buffer.views[index]
            if left.present & bit:
                mine.add_(theirs)
            else:
                mine.copy_(theirs)


def _disagreement(layout: GradientLayout, left: Partial, right: Partial) -> str:
    triples = zip(layout.layout.specs, left.buffer.views, right.buffer.views, strict=True)
    name, mine, theirs = next(
        (spec.name, mine, theirs)
        for spec, mine, theirs in triples
        if layout.folds.get(spec.name) is Fold.AGREE and not torch.equal(mine, theirs)
    )
    return (
        f"buffer {name} must be equal in every micro-batch of a step, and is {mine.tolist()} in one and "
        f"{theirs.tolist()} in another: make it depend on the step alone, or make it floating"
    )


def witness(partial: Partial) -> int | None:
    """A number that stands for a partial sum's bits, or None where one of its values is not finite.

    Made from the sum of each region, which is one pass over memory: equal sums give equal witnesses, and an honest
    machine's different sum all but never does. Against a forger it is no proof. Only where a region's own sum
    overflows is every value looked at.
    """
    number = partial.present & 0xFFFFFFFF
    for region, values in partial.buffer.regions:
        if not values.numel():
            continue
        total = values.sum().item()
        is_real = region.dtype.is_floating_point or region.dtype.is_complex
        if is_real and not cmath.isfinite(total) and not bool(torch.isfinite(values).all()):
            return None
        number = zlib.crc32(repr(total).encode(), number)
    return number


def first_non_finite(layout: GradientLayout, partial: Partial) -> str | None:
    """The first tensor that holds a NaN or an infinity."""
    for spec, view in zip(layout.layout.specs, partial.buffer.views, strict=True):
        if (spec.dtype.is_floating_point or spec.dtype.is_complex) and not bool(torch.isfinite(view).all()):
            return spec.name
    return None


def collect(
    layout: GradientLayout,
    gradients: Sequence[Tensor | None],
    factor: float,
    buffers: Mapping[str, Tensor],
    buffer: SumBuffer,
) -> Partial:
    """``factor * gradient`` of each parameter (in the layout's order) and the leaf's buffers, written into
    `body`.
    """
    views, present = buffer.views, 0
    dense: list[tuple[Tensor, Tensor]] = []
    for index, gradient in enumerate(gradients):
        if gradient is None:
            views[index].zero_()  # the buffer is reused, and whole regions are checked
        else:
            dense.append((views[index], gradient))
            present |= 1 << index
    if layout.layout.num_bytes > SMALL_BYTES and all(g.is_cpu and g.dtype == view.dtype for view, g in dense):
        with torch.no_grad():
            for view, gradient in dense:  # one pass over memory instead of two
                torch.mul(gradient, factor, out=view)
    elif dense:
        torch._foreach_copy_([view for view, _ in dense], [gradient for _, gradient in dense])
        for region, values in buffer.regions:
            if region.fold is None and factor != 1.0:
                values.mul_(factor)
    for spec, view in zip(layout.layout.specs[len(gradients) :], views[len(gradients) :], strict=True):
        view.copy_(buffers[spec.name])
    return Partial(buffer, present)
