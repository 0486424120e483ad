"""What the two sides of a split job say to each other, as plain data: the words of this mode.

A *loader* makes batches, a *trainer* consumes them. The trainer owns the order: it leases `Work` (which sample
indices make batch number `sequence` of an epoch) and a loader answers with that batch, made from its own copy
of the dataset. No socket, tensor or clock is known here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

import msgspec

Phase = Literal["train", "val", "infer"]
Mode = Literal["training", "validation", "inference"]


class Work(msgspec.Struct, frozen=True, gc=False):
    """One batch to make: these samples, in this order."""

    phase: Phase
    epoch: int
    sequence: int
    """Number of the batch within its phase and epoch, from 0."""
    indices: tuple[int, ...]
    """Indices into the phase's dataset."""


class Width(msgspec.Struct, frozen=True, array_like=True):
    """How a tensor that travels narrower than it was becomes itself again: cast, then divided."""

    dtype: Annotated[str, msgspec.Meta(max_length=16)]
    divisor: Literal[1, 255] = 1


@dataclass(frozen=True)
class Fault:
    """A sample that could not be made: its index in the phase's dataset, and what was raised."""

    index: int
    error: str


@dataclass(frozen=True)
class Made:
    """One batch as a worker made it."""

    work: Work
    batch: Any
    """Nested CPU tensors with the samples on the first dimension; None if every sample failed."""
    indices: tuple[int, ...]
    """The samples that `batch` holds, in order: those of `work` less the faulty ones."""
    faults: tuple[Fault, ...] = ()
    widths: tuple[Width | None, ...] = ()
    """What `split.narrow.widen` needs to give `batch` its own dtypes back; empty where nothing was narrowed."""


class Maker(Protocol):
    """Makes batches in the background, in worker processes or threads; the loader's shell drives it."""

    def submit(self, work: Work) -> None:
        """Queue `work`; never blocks."""
        ...

    def next(self, timeout_seconds: float | None = None) -> Made | None:
        """The next batch that is ready, in any order; None when the time is over.

        Raises:
            RunFailed: the workers themselves are lost (not: a sample raised, which is a `Fault`).

        """
        ...

    def close(self) -> None:
        """Stop the workers and wait for them."""
        ...


class Feed(Protocol):
    """The stream of batches as a trainer's loop sees it, whoever makes them and however they travel."""

    def batches(self, phase: Phase, epoch: int, start: int = 0) -> Iterator[Made]:
        """Iterate over this phase and epoch in the order of their sequence, from `start` on.

        Taking the next one acknowledges the one before: it counts as consumed then.
        """
        ...
