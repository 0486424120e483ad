"""What compression="int8" does to one process: the reference's own account of it, written from the rules.

1. A step's tree is cut into units, fixed subtrees; the sum of a unit counts as D(Q(sum)).
2. Leaves are computed with the weights that nodes were told; after each step these move by D(Q(own - told)).
3. fp32 tensors that follow each other are one row for Q, each padded with zeros to 16 values.

Shares Q and D (training/quantize.py) with the pool, and nothing else.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.functional import pad

from manyhands.training.quantize import num_units, round_trip
from manyhands.training.seeds import derive
from manyhands.training.state import ModelState

Gradients = list[Tensor | None]
_WIDE = (torch.float64, torch.complex64, torch.complex128)


class Rounded:
    """One run's units and told weights."""

    def __init__(self, state: ModelState, seed: int, micro_batches: int) -> None:
        self._parameters = list(state.trainable.values())
        self._told = [parameter.detach().clone() for parameter in self._parameters]
        self._seed = seed
        self._units = num_units(micro_batches)

    @contextmanager
    def told(self) -> Iterator[None]:
        """The model with the weights that nodes compute with; its own come back after."""
        own = [parameter.detach().clone() for parameter in self._parameters]
        _put(self._parameters, self._told)
        try:
            yield
        finally:
            _put(self._parameters, own)

    def tell(self) -> None:
        """After a step: the told weights move by what int8 can say of the difference."""
        pairs = zip(self._parameters, self._told, strict=True)
        for is_fp32, run in itertools.groupby(pairs, key=lambda pair: pair[0].dtype == torch.float32):
            own, told = zip(*((p.detach(), t) for p, t in run), strict=True)
            if is_fp32:
                differences = [mine - theirs for mine, theirs in zip(own, told, strict=True)]
                for theirs, change in zip(told, _as_row(differences, None), strict=True):
                    theirs.add_(change)
            else:
                _put(told, own)

    def sum(
        self, leaves: list[Gradients], step: int, tree: Callable[[list[Gradients]], Gradients]
    ) -> Gradients:
        """`tree` over the leaves, with each unit's sum rounded."""
        room = 1 << (len(leaves) - 1).bit_length()
        size = max(1, room // self._units)
        units = [tree(leaves[start : start + size]) for start in range(0, len(leaves), size)]
        return tree([self._round(unit, step, number) for number, unit in enumerate(units)])

    def _round(self, gradients: Gradients, step: int, unit: int) -> Gradients:
        pairs = list(enumerate(zip(self._parameters, gradients, strict=True)))
        row = {i: torch.zeros(p.shape) if g is None else g for i, (p, g) in pairs if p.dtype not in _WIDE}
        rounded = dict(
            zip(row, _as_row(list(row.values()), derive(self._seed, "quantize", step, unit)), strict=True)
        )
        return [None if g is None else rounded.get(i, g) for i, (_, g) in pairs]


def _as_row(tensors: list[Tensor], key: int | None) -> list[Tensor]:
    """D(Q) of tensors laid one after the other, each from a multiple of 16 values on; their shapes come back."""
    if not tensors:
        return []
    padded = [pad(t.cpu().reshape(-1), (0, -t.numel() % 16)) for t in tensors]
    parts = torch.split(round_trip(torch.cat(padded), key), [part.numel() for part in padded])
    pairs = zip(tensors, parts, strict=True)
    return [part[: t.numel()].view(t.shape).to(t.device) for t, part in pairs]


def _put(targets: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for target, value in zip(targets, values, strict=True):
            target.copy_(value)
