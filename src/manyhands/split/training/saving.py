"""Checkpoints of a trainer: the weights, what decides the next bits, and the position in the order of batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from manyhands.clock import Clock
from manyhands.errors import UsageError
from manyhands.split.training.learner import Learner
from manyhands.split.training.record import Record
from manyhands.store import checkpoint
from manyhands.store.manifest import plain
from manyhands.store.runs import new_run
from manyhands.training.optimizer import describe_optimizer
from manyhands.training.stopping import EarlyStopping

Resume = bool | Literal["auto"]


@dataclass
class Saver:
    """One run's checkpoints, in `folder`/RUN."""

    folder: Path
    run: str
    interval_seconds: float
    terms: Mapping[str, Any]
    """What must be the same in a resumed run: the job as its loaders announced it."""
    clock: Clock
    saved_at: float = 0.0

    @classmethod
    def open(
        cls, folder: Path, resume: Resume, interval_minutes: float, terms: Mapping[str, Any], clock: Clock
    ) -> tuple[Saver, checkpoint.Found | None]:
        """A new run's folder, or the newest run with the checkpoint to go on from."""
        found = checkpoint.newest(folder) if resume is not False else None
        if resume is True and found is None:
            raise UsageError(
                f"resume=True, and {folder} holds no checkpoint: give the folder of the run, or "
                'resume="auto" to start where there is none'
            )
        run = found.manifest["run"] if found is not None else new_run(folder)
        saver = cls(folder, run, interval_minutes * 60.0, plain(dict(terms)), clock, clock.monotonic())
        if found is not None:
            saver._check_terms(found.manifest)
        return saver, found

    @property
    def is_due(self) -> bool:
        """Whether the interval is over."""
        return self.clock.monotonic() - self.saved_at >= self.interval_seconds

    def save(self, learner: Learner, record: Record, early: EarlyStopping | None) -> Path:
        """Write everything as it is between two batches; StorageError where the disk does not take it."""
        tensors, tied = learner.state.named_once()
        state = {**learner.extras(), "early_stopping": early.to_plain() if early is not None else None}
        manifest = {
            "epoch": record.epoch,
            "terms": self.terms,
            "record": plain(record.to_plain()),
            "optimizer": plain(describe_optimizer(learner.optimizer)),
        }
        step = learner.steps
        path = checkpoint.save(
            self.folder, checkpoint.Snapshot(self.run, step, tensors, state, manifest, tied), self.clock
        )
        self.saved_at = self.clock.monotonic()
        return path

    def restore(self, found: checkpoint.Found, learner: Learner, early: EarlyStopping | None) -> Record:
        """Put a checkpoint back; the record says where to go on."""
        now, saved = describe_optimizer(learner.optimizer)["class"], found.manifest["optimizer"]["class"]
        if now != saved:
            raise UsageError(f"this run was saved with optimizer {saved} and is resumed with {now}")
        loaded = checkpoint.load(found)
        learner.restore(loaded.tensors, loaded.optimizer)
        if early is not None and loaded.optimizer["early_stopping"] is not None:
            early.load(loaded.optimizer["early_stopping"])
        return Record.from_plain(found.manifest["record"])

    def _check_terms(self, manifest: Mapping[str, Any]) -> None:
        saved = manifest["terms"]
        for name, value in self.terms.items():
            if saved.get(name) != value:
                raise UsageError(
                    f"the run in {self.folder} was trained with {name}={saved.get(name)!r}, and the loaders now say "
                    f"{value!r}: start them as before, or begin a new run with resume=False"
                )
