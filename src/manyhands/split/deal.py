"""Where a pass over a dataset is cut into batches, so that each of several trainers gets as many as the others.

::

    22 samples, batches of 4, 2 trainers     4 4 | 4 4 | 4 2     as for one trainer
    19 samples                               4 4 | 4 4 | 1 2     the last round, 3 samples, is dealt evenly
    17 samples                               4 4 | 2 2 | 2 3     it has but one: the last two rounds are

Ranks that sum their gradients wait for each other at every step, so one that had a batch less would leave the others
waiting for ever. No sample is used twice to fill up, none is left out. Pure.
"""

from __future__ import annotations

from typing import NamedTuple


class Deal(NamedTuple):
    """`length` samples in batches of at most `batch_size`, for so many `trainers` in turn."""

    length: int
    batch_size: int
    trainers: int = 1

    @property
    def num_batches(self) -> int:
        """Batches of one pass, of all trainers."""
        first, count = self._last_rounds()
        return first + count

    @property
    def is_even(self) -> bool:
        """False where it cannot be: fewer samples than trainers, or batches of one that they do not divide."""
        return self.num_batches % self.trainers == 0

    def bounds(self, sequence: int) -> tuple[int, int]:
        """The first sample of a batch, and the one behind its last."""
        first, count = self._last_rounds()
        if sequence < first:
            return sequence * self.batch_size, min((sequence + 1) * self.batch_size, self.length)
        begin, number = first * self.batch_size, sequence - first
        rest = self.length - begin
        return begin + rest * number // count, begin + rest * (number + 1) // count

    def _last_rounds(self) -> tuple[int, int]:
        """The first batch that is dealt evenly, and how many are."""
        plain = -(-self.length // self.batch_size)
        rounds, odd = divmod(plain, self.trainers)
        if odd == 0:
            return plain, 0
        rest = self.length - rounds * self.trainers * self.batch_size
        if rest >= self.trainers:
            return rounds * self.trainers, self.trainers
        if rounds and self.batch_size > 1:
            return (rounds - 1) * self.trainers, 2 * self.trainers
        return plain, 0
