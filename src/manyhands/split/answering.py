"""What a trainer does with a job that only asks: validation and inference."""

from __future__ import annotations

import threading
from typing import Any, Protocol

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
    """The scores of the job's "val" data, as ``run_validation`` returns them; after a stop they are not complete."""
    scores = Scores(learner.setup.objective.is_sum, keeps_details=True)
    batches = 0
    for made in job.batches("val", 0):
        if made.batch is not None:
            scores.add(*learner.score(learner.receive(made)))
            batches += 1
        progress.answered(batches, scores.samples)
        if stopping.is_set():
            break
    return validation_result(scores, batches)


def validation_result(scores: Scores, batches: int) -> dict[str, Any]:
    """What ``run_validation`` returns: accuracies only where the targets are classes."""
    result: dict[str, Any] = {
        "total_samples": scores.samples,
        "total_batches": batches,
        "average_loss": scores.loss,
        "detailed_results": scores.details,
    }
    if scores.accuracy is not None:
        result |= {"accuracy": scores.accuracy, "top5_accuracy": scores.top5_accuracy}
    return result


def infer(job: Job, learner: Learner, progress: Progress, stopping: threading.Event) -> None:
    """Send the rows of every batch of the job's "infer" data, from where its owner wants to begin."""
    wishes = Wishes(**job.terms.wishes)
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
