"""What a trainer does with a job that only asks: validation and inference."""

from __future__ import annotations

import threading
from typing import Any, Protocol

from manyhands.errors import ProtocolError
from manyhands.split.feed import Job
from manyhands.split.inference.reducing import reduce_output
from manyhands.split.inference.wishes import Columns, Wishes
from manyhands.split.training.learner import Learner
from manyhands.split.training.scores import Scores


class Progress(Protocol):
    """Who is told of each batch."""

    def answered(self, batches: int, samples: int) -> None:
        """So many batches, of so many samples, are done."""
        ...


def validate(job: Job, learner: Learner, progress: Progress, stopping: threading.Event) -> dict[str, Any]:
    """The `Scores.sums` of the job's "val" data, or of this share of it; after a stop they are not complete."""
    scores = Scores(learner.setup.objective.is_sum, keeps_details=True)
    for made in job.batches("val", 0):
        if made.batch is not None:
            scores.add(*learner.score(learner.receive(made)), made.work.sequence)
        progress.answered(len(scores.details), scores.samples)
        if stopping.is_set():
            break
    return scores.sums()


def infer(job: Job, learner: Learner, progress: Progress, stopping: threading.Event) -> None:
    """Send the rows of every batch of the job's "infer" data, from where its owner wants to begin."""
    try:
        wishes = Wishes(**job.terms.wishes)
    except TypeError as error:
        raise ProtocolError(f"a loader asks for an inference that there is none of: {error}") from None
    wishes.check()
    samples = 0
    for batches, made in enumerate(job.batches("infer", 0, job.start_of("infer")), 1):
        columns: Columns = {}  # of a batch whose samples were all bad; it counts as done
        if made.batch is not None:
            columns = reduce_output(learner.output(learner.receive(made)), wishes, made.indices)
            samples += len(made.indices)
        job.send_rows(made.work.sequence, columns)
        progress.answered(batches, samples)
        if stopping.is_set():
            return
