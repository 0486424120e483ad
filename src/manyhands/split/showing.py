"""What a trainer shows: a bar an epoch with the loss, the speed, the stream, and where the time goes; metric files."""

from __future__ import annotations

import logging
from collections.abc import Callable

from manyhands.clock import Clock
from manyhands.observe.metrics import MetricLog
from manyhands.observe.progress import Progress, Standing
from manyhands.observe.rates import Rate, format_bytes
from manyhands.observe.waiting import tell
from manyhands.split.feed import Figures, Job
from manyhands.split.jobs import Phase
from manyhands.split.training.learner import Learner
from manyhands.split.training.pace import Pace
from manyhands.split.training.record import Record

logger = logging.getLogger(__name__)

SHOWN_EVERY_SECONDS = 0.1


class Display:
    """Bars and metric files of one job; used from the trainer's thread."""

    def __init__(
        self, job: Job, open_bar: Callable[[], Progress], log: MetricLog, clock: Clock, epochs: int
    ) -> None:
        self._job = job
        self._open_bar = open_bar
        self._log = log
        self._clock = clock
        self._epochs = epochs
        self._bar: Progress | None = None
        self._rate = Rate()
        self._samples = 0
        self._shown_at: float | None = None

    # ---- training ----

    def trained(self, record: Record, learner: Learner, loss: float, pace: Pace) -> None:
        """See `training.fitting.Watcher`."""
        now = self._clock.monotonic()
        self._count(record.samples - self._samples, now)
        self._samples = record.samples
        self._log.write(learner.steps, {"loss": loss, "samples_per_s": self._rate.per_second(now)})
        total = self._job.num_batches("train")
        if self._is_due(now) or record.sequence == total:
            figures = self._job.figures()
            more = (f"of {self._epochs}", *_stream(figures), pace.verdict(figures.loaders))
            self._show(
                Standing(record.sequence, total, loss, self._rate.per_second(now), None, record.epoch, more)
            )

    def validated(self, batches: int, epoch: int) -> None:
        """See `training.fitting.Watcher`."""
        if self._is_due(self._clock.monotonic()):
            self._show(Standing(batches, self._job.num_batches("val"), epoch=epoch, more=("validating",)))

    def epoch_over(self, record: Record, learner: Learner, pace: Pace) -> None:
        """See `training.fitting.Watcher`: the bar stays on the screen, with a line for the history."""
        history = record.history
        values = {"train_loss": history["train_loss"][-1]}
        if history["val_loss"]:
            values["val_loss"] = history["val_loss"][-1]
        if history["val_accuracy"]:
            values["val_accuracy"] = history["val_accuracy"][-1]
        numbers = {name: value for name, value in values.items() if value is not None}
        self._log.write(learner.steps, numbers)
        figures = self._job.figures()
        words = [f"{name} {value:.4g}" for name, value in numbers.items()]
        words += [format_bytes(figures.received_bytes), pace.verdict(figures.loaders)]
        self.close()
        self.note(f"epoch {record.epoch - 1} done · " + " · ".join(words))

    # ---- validation and inference ----

    def answered(self, batches: int, samples: int) -> None:
        """So many batches, of so many samples, are done."""
        now = self._clock.monotonic()
        self._count(samples - self._samples, now)
        self._samples = samples
        if self._is_due(now):
            phase: Phase = "val" if self._job.terms.mode == "validation" else "infer"
            more = _stream(self._job.figures())
            speed = self._rate.per_second(now)
            self._show(Standing(batches, self._job.num_batches(phase), samples_per_second=speed, more=more))

    # ---- both ----

    def note(self, text: str) -> None:
        """One line of its own, in the log too."""
        logger.info(text)
        if self._bar is not None:
            self._bar.note(f"manyhands: {text}")
        else:
            tell(text)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _count(self, samples: int, now: float) -> None:
        self._rate.add(max(0, samples), now)

    def _is_due(self, now: float) -> bool:
        """Whether to show something again: the figures take a lock of the stream's."""
        if self._shown_at is not None and now - self._shown_at < SHOWN_EVERY_SECONDS:
            return False
        self._shown_at = now
        return True

    def _show(self, standing: Standing) -> None:
        if self._bar is None:
            self._bar = self._open_bar()
        self._bar.update(standing)


def _stream(figures: Figures) -> tuple[str, ...]:
    loaders = "1 loader" if figures.loaders == 1 else f"{figures.loaders} loaders"
    return (
        loaders,
        f"received {format_bytes(figures.received_bytes)}",
        f"window {format_bytes(figures.window_bytes)}",
        f"queue {figures.waiting_batches}",
    )
