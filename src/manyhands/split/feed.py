"""What a trainer sees of its loaders: jobs that come, batches in order, results that go back.

Code of a trainer needs only this file; `reception` (who listens, who dials) and `intake` (the ledger's shell) stand
behind it. A trainer's life::

    with Reception(...) as reception:
        job = reception.next_job()            # waits for the first loader; None once stop() was called
        for made in job.batches("train", epoch, start): ...
        job.finish(history, weights)          # every loader gets it, and goes

Everything may be called from the trainer's own thread; `stop` from any.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from manyhands.errors import ManyhandsError
from manyhands.split.jobs import Made, Phase
from manyhands.split.terms import Terms


@dataclass(frozen=True)
class Figures:
    """What a progress bar shows of the stream; counts from the job's start."""

    loaders: int
    """Loaders that are here now."""
    received_bytes: int
    window_bytes: int
    """How much all loaders together may send ahead of the trainer."""
    waiting_bytes: int
    """Received, and not consumed yet."""
    waiting_batches: int
    reissued: int
    """Batches that were leased again, since a loader died or was late."""
    duplicates: int
    """Batches that came twice, and were used once."""


class Job(Protocol):
    """One job, from the first loader's hello to its end; also a `jobs.Feed`."""

    terms: Terms
    weights: dict[str, Tensor] | None
    """What a loader's ``load_model`` wants the model to be before the first batch; None: as it is."""

    def batches(self, phase: Phase, epoch: int, start: int = 0) -> Iterator[Made]:
        """`Made` of this phase and epoch in the order of their sequence, those below `start` left out.

        Of a share, its own sequences only. Taking the next one says that the one before is consumed. A batch whose
        samples were all faulty has `batch=None`. Tensors are the caller's for as long as it holds them: their
        memory is used again once nothing refers to it, so keep them until a copy to a device has finished. Waits
        for loaders where none is left, saying so; ends early, without an error, after `stop`.

        Raises:
            Unreachable: no loader came for `network.wait_timeout`.
            RunFailed: a loader says that the job cannot go on (a bad sample, its workers are lost).

        """
        ...

    def num_batches(self, phase: Phase) -> int:
        """Batches of one epoch of this phase, all shares together; 0 where the job does not have it."""
        ...

    def start_of(self, phase: Phase) -> int:
        """Where whoever opened the job wants `phase` to begin: inference that goes on after a kill."""
        ...

    def send_rows(self, sequence: int, columns: Mapping[str, Any]) -> None:
        """Send the arrays that inference made of batch `sequence` to whoever opened the job, in ascending order.

        Waits while 64 MiB are not acknowledged yet. Unreachable where that loader is gone for good.
        """
        ...

    def figures(self) -> Figures:
        """How the stream is doing; cheap."""
        ...

    def finish(self, result: Mapping[str, Any], weights: Mapping[str, Tensor] | None = None) -> None:
        """End the job well: every loader gets `result` (plain values, lists, arrays) and, with it, the weights.

        Returns when they have it, or are gone.
        """
        ...

    def fail(self, error: ManyhandsError) -> None:
        """End the job: every loader raises `error`'s sentence."""
        ...
