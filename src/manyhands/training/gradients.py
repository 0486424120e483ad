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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from manyhands.errors import ProtocolError
from manyhands.tensors.layout import Layout
from manyhands.training.buffers import Fold
from manyhands.training.state import ModelState


class Region(NamedTuple):
    """A run of same-typed, same-folded tensors: bytes [start, stop) of the body, padding (zeros) included."""

    dtype: torch.dtype
    fold: Fold | None
    start: int
    stop: int

    def of(self, body: Tensor) -> Tensor:
        """The part of `body` that is this region, as a flat tensor of its dtype."""
        return body[self.start : self.stop].view(self.dtype)


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

    def allocate(self) -> Tensor:
        """An aligned body (uint8) of zeros; padding must stay zero, since whole regions are added and
        checked.
        """
        return self.layout.allocate().zero_()


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

    body: Tensor
    present: int


def combine(layout: GradientLayout, left: Partial, right: Partial) -> Partial:
    """The sum of two neighbouring subtrees, in `left`'s body; `right` may be reused afterwards.

    ProtocolError where buffers that must agree do not.
    """
    if left.present == right.present == layout.everyone:
        for region in layout.regions:
            if region.fold is None:
                region.of(left.body).add_(region.of(right.body))
    else:
        _combine_sparse(layout, left, right)
    for region in layout.regions:
        if region.fold is Fold.MEAN:
            region.of(left.body).add_(region.of(right.body))
        elif region.fold is Fold.AGREE and not torch.equal(region.of(left.body), region.of(right.body)):
            raise ProtocolError(_disagreement(layout, left, right))
    return Partial(left.body, left.present | right.present)


def _combine_sparse(layout: GradientLayout, left: Partial, right: Partial) -> None:
    mine, theirs = layout.layout.views(left.body), layout.layout.views(right.body)
    for index in range(len(layout.parameters)):
        bit = 1 << index
        if right.present & bit:
            if left.present & bit:
                mine[index].add_(theirs[index])
            else:
                mine[index].copy_(theirs[index])


def _disagreement(layout: GradientLayout, left: Partial, right: Partial) -> str:
    views = zip(
        layout.layout.specs, layout.layout.views(left.body), layout.layout.views(right.body), strict=True
    )
    for spec, mine, theirs in views:
        if layout.folds.get(spec.name) is Fold.AGREE and not torch.equal(mine, theirs):
            return (
                f"buffer {spec.name} must be equal in every micro-batch of a step, and is {mine.tolist()} "
                "in one and "
                f"{theirs.tolist()} in another: make it depend on the step alone, or make it floating"
            )
    return "two micro-batches disagree on a buffer"


def is_finite(layout: GradientLayout, partial: Partial) -> bool:
    """Whether every sum is finite. A sum is a quick witness; only an infinite one is looked at closely."""
    for region in layout.regions:
        values = region.of(partial.body)
        if not (region.dtype.is_floating_point or region.dtype.is_complex) or not values.numel():
            continue
        if not (bool(torch.isfinite(values.sum())) or bool(torch.isfinite(values).all())):
            return False
    return True


def first_non_finite(layout: GradientLayout, partial: Partial) -> str | None:
    """The first tensor that holds a NaN or an infinity."""
    for spec, view in zip(layout.layout.specs, layout.layout.views(partial.body), strict=True):
        if (spec.dtype.is_floating_point or spec.dtype.is_complex) and not bool(torch.isfinite(view).all()):
            return spec.name
    return None


def collect(
    layout: GradientLayout,
    gradients: Sequence[Tensor | None],
    factor: float,
    buffers: Mapping[str, Tensor],
    body: Tensor,
) -> Partial:
    """``factor * gradient`` of each parameter (in the layout's order) and the leaf's buffers, written into
    `body`.
    """
    views = layout.layout.views(body)
    present = 0
    for index, gradient in enumerate(gradients):
        if gradient is None:
            views[index].zero_()  # the body is reused, and whole regions are checked
            continue
        view = views[index]
        if gradient.dtype == view.dtype and gradient.device == view.device:
            torch.mul(gradient, factor, out=view)
        else:
            view.copy_(gradient.to(view.dtype).mul_(factor))
        present |= 1 << index
    for spec, view in zip(layout.layout.specs[len(gradients) :], views[len(gradients) :], strict=True):
        view.copy_(buffers[spec.name])
    return Partial(body, present)
