"""How the samples and batches of one phase are made, and where their random numbers come from.

A sample is made under generators (torch's, numpy's, Python's) that are set from (seed, epoch, index), and a batch is
collated and preprocessed under ones set from (seed, epoch, first index). So neither depends on who makes it, when, or
for the how manieth time. What draws elsewhere cannot be reached: ``np.random.default_rng()`` and ``torch.Generator``
of one's own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from manyhands.training.batch import Batch, collate
from manyhands.training.seeds import derive, generators, seed_generators

Seeding = Callable[[int], AbstractContextManager[None]]
"""Sets this process's generators from a seed for the block that it opens."""

PreprocessingFn = Callable[..., Any]
CollateFn = Callable[[list[Any]], Batch]


@contextmanager
def only_seeded(seed: int) -> Iterator[None]:
    """As `generators`, and leaves them as they are after: for a process in which nobody else draws."""
    seed_generators(seed)
    yield


@dataclass(frozen=True)
class Recipe:
    """A phase's dataset and what is done with it; a plain value, so that worker processes can be given it.

    `preprocessing_fn` gets the collated batch: ``fn(x, y)`` of a pair, ``fn(a, b, y)`` of three, ``fn(batch)`` (or
    ``fn(batch, None)``, where it takes two) of anything else. What it returns is the batch.
    """

    dataset: Any
    seed: int = 0
    collate_fn: CollateFn | None = None
    preprocessing_fn: PreprocessingFn | None = None
    transfer_dtype: str | None = None

    def item_seed(self, epoch: int, index: int) -> int:
        """What the generators are set from while sample `index` is made."""
        return derive(self.seed, "item", epoch, index)

    def sample(self, epoch: int, index: int, seeding: Seeding = generators) -> Any:
        """One sample of a map-style dataset; what the dataset raises passes through."""
        with seeding(self.item_seed(epoch, index)):
            return self.dataset[index]

    def batch(self, epoch: int, first: int, samples: Sequence[Any]) -> Batch:
        """The batch of these samples, the first of which was asked for as number `first`."""
        return self.preprocessed(epoch, first, self.collated(epoch, first, samples))

    def collated(
        self, epoch: int, first: int, samples: Sequence[Any], seeding: Seeding = generators
    ) -> Batch:
        """These samples as tensors with them on the first dimension: by `collate_fn`, else by default_collate."""
        if self.collate_fn is None:  # default_collate draws no random numbers
            return collate(samples)
        with seeding(derive(self.seed, "collate", epoch, first)):
            return collate(samples, self.collate_fn)

    def preprocessed(self, epoch: int, first: int, batch: Batch, seeding: Seeding = generators) -> Batch:
        """A collated batch after `preprocessing_fn`, if there is one."""
        if self.preprocessing_fn is None:
            return batch
        with seeding(derive(self.seed, "preprocess", epoch, first)):
            return _called(self.preprocessing_fn, batch)


def _called(function: PreprocessingFn, batch: Batch) -> Batch:
    if isinstance(batch, tuple | list) and len(batch) > 1:
        return function(*batch)
    alone = batch[0] if isinstance(batch, tuple | list) else batch
    if not _takes_two(function):
        return function(alone)
    result = function(alone, None)
    # fn(x, y) of data without targets gives (x, None): None is no target.
    return result[0] if isinstance(result, tuple) and len(result) == 2 and result[1] is None else result


def _takes_two(function: PreprocessingFn) -> bool:
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        return True
    except ValueError:  # a builtin that does not say
        return False
    return False
