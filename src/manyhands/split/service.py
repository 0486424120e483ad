"""What a trainer does with one job, from its first batch to its result: train, validate, infer.

Whatever ends a job in the middle is told to its loaders before it comes out here. Who comes and how is `reception`'s,
and when to stop is for whoever sets the event.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manyhands.clock import Clock
from manyhands.errors import ManyhandsError, RunFailed, UsageError
from manyhands.observe.metrics import open_log
from manyhands.observe.progress import Progress, open_progress
from manyhands.observe.waiting import tell
from manyhands.settings import load
from manyhands.split.answering import infer, validate
from manyhands.split.feed import Job
from manyhands.split.showing import Display
from manyhands.split.training.fitting import Fit
from manyhands.split.training.learner import Learner
from manyhands.split.training.record import History
from manyhands.split.training.saving import Resume, Saver
from manyhands.split.training.weights import put_weights
from manyhands.training.stopping import EarlyStopping, early_stopping


@dataclass(frozen=True)
class Keeping:
    """Where a training job's checkpoints go, and whether it begins with one."""

    folder: Path
    resume: Resume
    interval_minutes: float


@dataclass
class Service:
    """Does jobs with one model, one at a time."""

    learner: Learner
    clock: Clock
    stopping: threading.Event
    """Set by whoever wants the job to end after its batch."""
    log: str | None = None
    keeping: Keeping | None = None

    def do(self, job: Job) -> None:
        """One job of any kind; what it raises, its loaders were told."""
        if job.terms.mode == "training":
            self.train(job)
        else:
            self.answer(job)

    def answer(self, job: Job) -> None:
        """Validate or infer: of a job that was stopped in the middle there is no result."""
        with self._told(job), self._display(job) as display:
            self._begin(job)
            result: dict[str, Any] = {}
            if job.terms.mode == "validation":
                result = validate(job, self.learner, display, self.stopping)
            else:
                infer(job, self.learner, display, self.stopping)
            if self.stopping.is_set():
                raise RunFailed(
                    f"the trainer was stopped in the middle of this {job.terms.mode}: start it again and repeat the "
                    "call; an inference with output= goes on where it was"
                )
            job.finish(result)

    def train(self, job: Job) -> History:
        """Train, and save where there is a folder for it; the history, so far after a stop."""
        with self._told(job), self._display(job) as display:
            self.learner.prepare()
            self._begin(job)
            rule = early_stopping(job.terms.early_stopping)
            validates = "val" in job.terms.lengths
            if rule is not None and not validates:
                raise UsageError(
                    "early_stopping needs validation data: give setup_dataset val_split or val_dataset"
                )
            fit = Fit(
                job,
                self.learner,
                job.terms.epochs,
                self.clock,
                display,
                validates,
                EarlyStopping(**rule) if rule is not None else None,
                stopping=self.stopping,
            )
            if self.keeping is not None:
                self._attach_saver(fit, job, self.keeping)
            history = fit.run()
            job.finish(history, self.learner.state.named_once()[0])
            return history

    def _begin(self, job: Job) -> None:
        if job.weights is not None:
            put_weights(job.weights, self.learner.setup.model)

    def _attach_saver(self, fit: Fit, job: Job, keeping: Keeping) -> None:
        terms = job.terms
        identity = {
            "lengths": dict(terms.lengths),
            "batch_size": terms.batch_size,
            "shuffle": terms.shuffle,
            "seed": terms.seed,
            "share": [terms.share.rank, terms.share.trainers],
            "dataset": terms.fingerprint,
            "precision": fit.learner.setup.precision,
        }
        fit.saver, found = Saver.open(
            keeping.folder, keeping.resume, keeping.interval_minutes, identity, self.clock
        )
        if found is not None:
            for note in found.skipped:
                tell(note)
            fit.record = fit.saver.restore(found, fit.learner, fit.early)
            tell(f"going on from {found.path}: epoch {fit.record.epoch}, batch {fit.record.sequence}")

    @contextmanager
    def _told(self, job: Job) -> Iterator[None]:
        """Loaders hear of whatever ends their job in the middle."""
        try:
            yield
        except ManyhandsError as error:
            job.fail(error)
            raise
        except Exception as error:
            job.fail(RunFailed(f"the trainer failed: {type(error).__name__}: {error}"))
            raise

    @contextmanager
    def _display(self, job: Job) -> Iterator[Display]:
        log = open_log(self.log)
        display = Display(job, self._open_bar, log, self.clock, job.terms.epochs)
        try:
            yield display
        finally:
            display.close()
            log.close()

    def _open_bar(self) -> Progress:
        settings = load(split=True)
        return open_progress(
            self.clock,
            bars=settings.monitoring.progress_bars,
            line_seconds=settings.advanced.plain_line_seconds,
        )
