"""The order of a job's batches, as arithmetic; the file to read first, with `ledger`.

::

    epoch 0, train     [7 4 2 9][1 5 0 8][6 3]     the order of a real DataLoader(range(n), generator=…)
    sequence               0        1      2
    two trainers         rank 0   rank 1  rank 0    sequence % trainers == rank; training's validation: all
    ... that train       [7 4 2 9][1 5 0 8][6][3]   as many batches for each (`deal`)
    serial            0 1 2 | 3 4 | 5 6 7 | 8 9     over train and val of every epoch, in the order of need

A bare ``torch.randperm`` does not give a DataLoader's order: each of its epochs draws a seed for workers besides.
So epoch ``e`` is what the (e+1)-th pass over one shuffled DataLoader gives, whose generator began with
``manual_seed(seed)``. No clock, no network, no data.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from manyhands.errors import UsageError
from manyhands.split.deal import Deal
from manyhands.split.jobs import Phase, Work
from manyhands.split.terms import Terms

_CHUNK = 4096
"""Indices that the DataLoader hands over at once; its order does not depend on it."""

Leg = tuple[Phase, int]
"""One pass over one phase's data: the phase and its epoch."""


class _Range:
    """``range(n)`` as a dataset that gives a whole batch in one call."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> int:
        return index

    def __getitems__(self, indices: list[int]) -> Tensor:
        return torch.tensor(indices, dtype=torch.int64)


@dataclass
class Shuffle:
    """The orders of one dataset's epochs; going on by one epoch is cheap, going back begins anew."""

    length: int
    seed: int
    _epoch: int = field(default=-1, init=False)
    _order: Tensor | None = field(default=None, init=False)
    _passes: DataLoader[Tensor] | None = field(default=None, init=False)

    def order(self, epoch: int) -> Tensor:
        """Dataset indices in the order of `epoch`: int64 ``(length,)``."""
        if self._passes is None or epoch < self._epoch:
            # Worker processes are none of its business here: num_workers=0 draws the same numbers.
            self._passes, self._epoch = _passes(self.length, self.seed), -1
        while self._epoch < epoch:
            self._order = torch.cat(list(self._passes))
            self._epoch += 1
        assert self._order is not None
        return self._order


def _passes(length: int, seed: int) -> DataLoader[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(
        _Range(length),  # type: ignore[arg-type]
        batch_size=_CHUNK,
        shuffle=True,
        generator=generator,
        collate_fn=lambda indices: indices,
    )


class Plan:
    """The batches of one job, in the order in which its trainer needs them; `validates` if it does so each epoch."""

    def __init__(self, terms: Terms, *, validates: bool = True) -> None:
        self.terms = terms
        self._validates = validates and bool(terms.lengths.get("val"))
        self._shuffle: dict[Phase, Shuffle] = {}

    def num_batches(self, phase: Phase) -> int:
        """Batches of one epoch of `phase`, of all shares; 0 where the job has no such data."""
        return self._deal(phase).num_batches

    def works(self, phase: Phase, epoch: int, start: int = 0) -> Iterator[Work]:
        """The share's works of one leg, those with a sequence below `start` left out."""
        deal, share = self._deal(phase), self.terms.share
        order: Tensor | None = None
        # The ranks of a training job have equal weights, and must decide alike: each validates on everything.
        is_shared = not (self.terms.mode == "training" and phase == "val")
        for sequence in range(start, deal.num_batches):
            if is_shared and sequence % share.trainers != share.rank:
                continue
            first, end = deal.bounds(sequence)
            if phase == "train" and self.terms.shuffle:
                if order is None:
                    order = self._order(phase, epoch)
                indices = tuple(order[first:end].tolist())
            else:
                indices = tuple(range(first, end))
            yield Work(phase, epoch, sequence, indices)

    def legs_from(self, phase: Phase, epoch: int) -> Iterator[Leg]:
        """A leg and those that are likely to follow it: what is worth making ahead."""
        if self.terms.mode != "training":
            yield phase, epoch
            return
        yield phase, epoch
        if phase == "train" and self._validates:
            yield "val", epoch
        for later in range(epoch + 1, self.terms.epochs):
            yield "train", later
            if self._validates:
                yield "val", later

    def works_from(self, phase: Phase, epoch: int, start: int = 0) -> Iterator[Work]:
        """Works from a position on, across legs."""
        for leg, (leg_phase, leg_epoch) in enumerate(self.legs_from(phase, epoch)):
            yield from self.works(leg_phase, leg_epoch, start if leg == 0 else 0)

    def check(self, phase: Phase, epoch: int, start: int) -> None:
        """UsageError for a position that no pass of this job has."""
        batches = self.num_batches(phase)
        if not batches:
            raise UsageError(f"this job has no {phase} data; it has {', '.join(sorted(self.terms.lengths))}")
        if epoch < 0 or not 0 <= start <= batches:
            raise UsageError(f"epoch {epoch}, batch {start}: the {phase} data has batches 0 to {batches - 1}")

    def _deal(self, phase: Phase) -> Deal:
        terms = self.terms
        trainers = terms.share.trainers if phase == "train" else 1
        return Deal(terms.lengths.get(phase, 0), terms.batch_size, trainers)

    def _order(self, phase: Phase, epoch: int) -> Tensor:
        shuffle = self._shuffle.setdefault(phase, Shuffle(self.terms.lengths[phase], self.terms.seed))
        return shuffle.order(epoch)
