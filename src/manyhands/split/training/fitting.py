"""Training over a feed: epochs of batches, a validation after each, early stopping, checkpoints between.

::

    for each epoch, from the record's position on
        for each batch     1 step            learner.step
                           2 count it        record.trained
                           3 checkpoint      saver, when its interval is over
        validation         4                 scores over the "val" phase, where there is one
        history            5                 record.close_epoch; stop early where it says so

A stop is honoured between two batches, so what is saved is always a whole number of steps.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from manyhands.clock import Clock
from manyhands.errors import UsageError
from manyhands.split.jobs import Feed, Made, Phase
from manyhands.split.training.learner import Learner
from manyhands.split.training.pace import Pace
from manyhands.split.training.record import History, Record
from manyhands.split.training.saving import Saver
from manyhands.split.training.scores import Scores
from manyhands.training.batch import tensors_of
from manyhands.training.stopping import EarlyStopping


class Watcher(Protocol):
    """Who is told of each batch: bars, lines, metric files."""

    def trained(self, record: Record, learner: Learner, loss: float, pace: Pace) -> None:
        """A batch was trained on; cheap enough for each."""
        ...

    def validated(self, batches: int, epoch: int) -> None:
        """So many batches of the epoch's validation are done."""
        ...

    def epoch_over(self, record: Record, learner: Learner, pace: Pace) -> None:
        """The history has a new entry."""
        ...

    def note(self, text: str) -> None:
        """One line of its own."""
        ...


@dataclass
class Fit:
    """One training run; `run` may be called once."""

    feed: Feed
    learner: Learner
    epochs: int
    clock: Clock
    watcher: Watcher
    validates: bool = False
    early: EarlyStopping | None = None
    saver: Saver | None = None
    record: Record = field(default_factory=Record)
    stopping: threading.Event = field(default_factory=threading.Event)

    def run(self) -> History:
        """Train to the end or to a stop; the history so far.

        What was trained is saved in every case: also where a peer is lost, a loss is not a number or the model does
        not take a batch, whose error then comes out.
        """
        try:
            while self.record.epoch < self.epochs and not self.record.stopped_early:
                if not self._epoch():
                    break
            else:
                self._finish()
        except Exception:
            if self.learner.is_whole:
                self._save()
            raise
        self._save()
        return self.record.history

    def _epoch(self) -> bool:
        """Train one epoch from the record's position on; False where a stop came first."""
        record, pace = self.record, Pace()
        for made in self._timed("train", record.epoch, record.sequence, pace):
            self._step(made, pace)
            if self.stopping.is_set():
                break
        result = self._validate() if self.validates and not self.stopping.is_set() else None
        if self.stopping.is_set():
            return False  # the record says that the epoch is open: a resumed run goes on in it
        train_loss = record.loss or 0.0
        self.learner.epoch_over(result.loss if result else train_loss)
        record.close_epoch(result.loss if result else None, result.accuracy if result else None)
        if self.early is not None and result is not None:
            if self.early.monitor == "val_accuracy" and result.accuracy is None:
                raise UsageError(
                    "early_stopping monitors val_accuracy, and the targets are no classes: monitor val_loss"
                )
            record.stopped_early = self.early.update(result.loss, result.accuracy, self.learner.setup.model)
        self.watcher.epoch_over(record, self.learner, pace)
        return True

    def _step(self, made: Made, pace: Pace) -> None:
        record, work, started = self.record, made.work, self.clock.monotonic()
        loss = float("nan")
        if made.batch is not None:  # else each of its samples was bad, and is quarantined
            loss, weight = self.learner.step(self.learner.receive(made), where(made))
            record.trained(work.sequence, len(made.indices), loss, weight)
        else:
            record.trained(work.sequence, 0, 0.0, 0.0)
        pace.computing_seconds += self.clock.monotonic() - started
        self.watcher.trained(record, self.learner, loss, pace)
        if self.saver is not None and self.saver.is_due:
            started = self.clock.monotonic()
            self._save()
            pace.saving_seconds += self.clock.monotonic() - started

    def _timed(self, phase: Phase, epoch: int, start: int, pace: Pace) -> Iterator[Made]:
        batches = self.feed.batches(phase, epoch, start)
        while True:
            started = self.clock.monotonic()
            made = next(batches, None)
            pace.waiting_seconds += self.clock.monotonic() - started
            if made is None:
                return
            if pace.batches == 0:
                pace.sends_wide_floats = _has_wide_floats(made)
            pace.batches += 1
            yield made

    def _validate(self) -> Scores:
        scores = Scores(self.learner.setup.objective.is_sum)
        for made in self.feed.batches("val", self.record.epoch):
            if made.batch is not None:
                scores.add(*self.learner.score(self.learner.receive(made)))
            self.watcher.validated(made.work.sequence + 1, self.record.epoch)
            if self.stopping.is_set():
                break
        return scores

    def _finish(self) -> None:
        if self.early is not None and self.early.restore_best and self.early.best_state:
            self.early.restore(self.learner.setup.model)
            if self.record.stopped_early:
                self.watcher.note(
                    f"stopped early after epoch {self.record.epoch}: no better {self.early.monitor} for "
                    f"{self.early.patience} epochs; the best epoch's weights are back"
                )

    def _save(self) -> None:
        if self.saver is not None:
            self.saver.save(self.learner, self.record, self.early)


def _has_wide_floats(made: Made) -> bool:
    """Whether inputs came as float32 or wider; targets are few."""
    if made.batch is None or made.widths:
        return False
    inputs = made.batch[:-1] if isinstance(made.batch, tuple | list) and len(made.batch) > 1 else made.batch
    return any(tensor.is_floating_point() and tensor.itemsize >= 4 for tensor in tensors_of(inputs))


def where(made: Made) -> str:
    """A batch for an error message: its epoch, number and first samples."""
    first: list[Any] = [str(index) for index in made.indices[:5]]
    more = ", …" if len(made.indices) > len(first) else ""
    work = made.work
    return f"epoch {work.epoch}, batch {work.sequence} (samples {', '.join(first)}{more})"
