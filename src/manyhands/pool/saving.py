"""Checkpoint and journal of one run: what is written, and how a run is found again.

A checkpoint and the journal position it names belong to one and the same step. Resuming loads the newest
whole checkpoint and voids the journal's later rows, so the ledger never counts what the weights forgot.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from manyhands.clock import Clock
from manyhands.errors import UsageError
from manyhands.pool.compression import INT8
from manyhands.pool.job import Job
from manyhands.pool.tally import Tally
from manyhands.store import checkpoint
from manyhands.store.journal import Journal
from manyhands.store.manifest import plain
from manyhands.store.runs import JOURNAL, new_run, run_folder
from manyhands.training.optimizer import describe_optimizer
from manyhands.training.state import CRITERION, check_tensors, named_sha256
from manyhands.training.stopping import EarlyStopping

Resume = bool | Literal["auto"]
ADDRESS = "address.json"


@dataclass(frozen=True)
class Committed:
    """What belongs to `step` committed steps, besides the weights: taken at once, written at leisure."""

    step: int
    tally: dict[str, Any]
    quarantined: list[int]
    early_stopping: dict[str, Any] | None = None


@dataclass
class Saver:
    """One run's folder."""

    folder: Path
    run: str
    journal: Journal
    clock: Clock
    notes: list[str]
    is_new: bool

    @classmethod
    def open(
        cls, checkpoint_dir: Path, resume: Resume, clock: Clock
    ) -> tuple[Saver, checkpoint.Found | None]:
        """A new run's folder, or the one to go on with and its newest whole checkpoint."""
        found = None
        if resume is not False:
            found = checkpoint.newest(checkpoint_dir)
            if found is None and resume is True:
                raise UsageError(
                    f"resume=True, and {checkpoint_dir} holds no checkpoint: give the folder of the run, "
                    'or resume="auto" to '
                    "start where there is none"
                )
        run = found.manifest["run"] if found is not None else new_run(checkpoint_dir)
        folder = run_folder(checkpoint_dir, run)
        journal = Journal(folder / JOURNAL, clock)
        note = journal.open()
        notes = [*([note] if note else []), *(found.skipped if found is not None else [])]
        return cls(checkpoint_dir, run, journal, clock, notes, found is None), found

    def withdraw(self) -> None:
        """Remove the folder of a run that never began, so that nobody resumes it."""
        if self.is_new:
            shutil.rmtree(self.path, ignore_errors=True)

    @property
    def path(self) -> Path:
        """The run's own folder."""
        return run_folder(self.folder, self.run)

    def save(self, job: Job, committed: Committed) -> Path:
        """Write the state after some committed steps. Nothing may change the weights meanwhile."""
        step = committed.step
        tensors, tied = job.state.named_once()
        manifest = {
            "epoch": job.plan.epoch_of(step) if step < job.plan.num_steps else job.plan.epochs,
            "plan": _plan(job),
            "journal_position": self.journal.position(),
            "quarantined": committed.quarantined,
            "tally": committed.tally,
            "optimizer": describe_optimizer(job.master.optimizer),
            "numeric_class": job.own_class,
            "weights_sha256": named_sha256({n: t for n, t in tensors.items() if not n.startswith(CRITERION)}),
        }
        state = {**job.master.optimizer_state(), "early_stopping": committed.early_stopping}
        return checkpoint.save(
            self.folder,
            checkpoint.Snapshot(self.run, step, tensors, state, plain(manifest), tied),
            self.clock,
        )

    def restore(
        self, job: Job, found: checkpoint.Found, early_stopping: EarlyStopping | None = None
    ) -> tuple[int, Tally]:
        """Put a checkpoint back into the job; returns the steps it holds and the tally as it was."""
        if found.manifest["plan"].get("compression") == INT8 and job.master.compression is None:
            job.master.compress(job.options.seed, job.plan.micro_batches)  # a node may have asked for it
        _check_same(job, found.manifest)
        loaded = checkpoint.load(found)
        tensors = job.state.tensors()
        check_tensors(tensors, loaded.tensors)
        with torch.no_grad():
            for name, value in loaded.tensors.items():
                tensors[name].copy_(value)
        job.master.load_optimizer_state(loaded.optimizer)
        if early_stopping is not None and loaded.optimizer["early_stopping"] is not None:
            early_stopping.load(loaded.optimizer["early_stopping"])
        job.feeder.quarantined |= set(found.manifest["quarantined"])
        self.journal.rollback_to(found.manifest["journal_position"])
        return int(found.manifest["step"]), Tally.from_plain(found.manifest["tally"])

    def remembered_port(self) -> int:
        """The port that this run listened on last; 0 if it never did."""
        try:
            return int(json.loads((self.path / ADDRESS).read_text())["port"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    def remember_port(self, port: int) -> None:
        """Keep the port, so that nodes find a coordinator that comes back with port=0."""
        (self.path / ADDRESS).write_text(json.dumps({"port": port}))


def _plan(job: Job) -> dict[str, Any]:
    plan = job.plan
    names = (
        "num_samples",
        "batch_size",
        "micro_batches",
        "epochs",
        "max_steps",
        "shuffle",
        "drop_last",
        "seed",
        "join_tail",
    )
    compression = INT8 if job.master.compression is not None else None
    options = {"precision": job.options.precision, "compression": compression}
    return {name: getattr(plan, name) for name in names} | options


def _check_same(job: Job, manifest: Mapping[str, Any]) -> None:
    """Only the run's length may differ from when it was saved."""
    mine, saved = _plan(job), manifest["plan"]
    for name, value in mine.items():
        if name not in ("epochs", "max_steps") and saved.get(name) != value:
            raise UsageError(
                f"this run was saved with {name}={saved.get(name)!r} and is resumed with {value!r}: give "
                "it the same, or "
                "resume=False for a new run"
            )
    optimizer = str(manifest["optimizer"]["class"])
    now = describe_optimizer(job.master.optimizer)["class"]
    if optimizer != now:
        raise UsageError(f"this run was saved with optimizer {optimizer} and is resumed with {now}")
