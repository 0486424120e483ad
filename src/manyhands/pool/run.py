"""One incarnation of a run from open to report: listens, trains, validates, saves, and ends well or badly.

The event loop's own thread runs :func:`Run.main`; the caller's thread waits. Checkpoints are written on a
worker thread while nodes compute the next step; the next commit waits for them.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from manyhands.clock import Clock
from manyhands.errors import ManyhandsError, RunFailed, Unreachable
from manyhands.fleet import messages as m
from manyhands.fleet.visitors import Echoes
from manyhands.observe.metrics import MetricLog
from manyhands.observe.progress import Progress, Standing
from manyhands.observe.rates import Rate, format_duration
from manyhands.observe.waiting import Waiting
from manyhands.pool.coordinator import Coordinator
from manyhands.pool.data import Source
from manyhands.pool.job import Job
from manyhands.pool.owner import answer
from manyhands.pool.saving import Committed, Saver
from manyhands.pool.tally import Report
from manyhands.pool.validation import Validation, validate
from manyhands.settings import load
from manyhands.training.state import weights_sha256
from manyhands.training.stopping import EarlyStopping
from manyhands.wire.admission import Peer
from manyhands.wire.gate import Gate
from manyhands.wire.listener import Listener

logger = logging.getLogger(__name__)

SHOW_SECONDS = 0.05
"""How often a progress display is told where the run stands: twice as often as the quickest of them is redrawn."""

LAST_CALL_SECONDS = 5.0
"""How long a coordinator that has nothing left to do waits for nodes that look for it."""


@dataclass
class Hooks:
    """The caller's own functions and views; called between steps, on the coordinator's thread."""

    on_step: Callable[..., Any] | None = None
    on_epoch: Callable[..., Any] | None = None
    log: MetricLog | None = None
    progress: Progress | None = None
    val_source: Source | None = None
    early_stopping: EarlyStopping | None = None


@dataclass
class Run:
    """Drives one coordinator."""

    job: Job
    saver: Saver
    coordinator: Coordinator
    listener: Listener
    gate: Gate
    hooks: Hooks
    clock: Clock
    hold_for_nodes: int = 0
    stopping: bool = False
    state: str = "waiting"
    echoes: Echoes = field(default_factory=Echoes)
    _saving: asyncio.Task[Any] | None = None
    _saved_at: float = 0.0
    _shown_at: float = -math.inf
    _started: float = 0.0
    _seconds_before: float = 0.0
    _rate: Rate = field(default_factory=Rate)

    async def ask(self, peer: Peer, request: bytes) -> bytes:
        """A short question."""
        return await answer(self, peer, request)

    def _is_stopping(self) -> bool:
        return self.stopping

    def stop(self) -> None:
        """Drain: the open step is given up, what is committed is saved."""
        self.stopping = True
        self.coordinator.interrupt()

    async def begin(self) -> None:
        """Save the state that the run begins with. Only then may an invite be shown: the certificate in it is this
        run's, and a coordinator that comes back without a checkpoint would begin another run.
        """
        self._started, self._seconds_before = self.clock.monotonic(), self.coordinator.tally.seconds
        self._rate.start(self._started)
        await self._save_now()

    async def main(self) -> Report:
        """Train until done, stopped or failed; the listener is up already."""
        tasks = [asyncio.create_task(self.coordinator.tick()), asyncio.create_task(self._watch_for_nodes())]
        ending = m.Finished("the run is complete", ok=True)
        self.state = "running"
        try:
            await self._train()
            if self.stopping:
                ending = m.Finished("the run was stopped by its owner; what it learned is saved", ok=True)
        except ManyhandsError as error:
            ending = m.Finished(str(error)[:1900], ok=False)
            raise
        except BaseException as error:
            ending = m.Finished(f"the coordinator failed: {type(error).__name__}: {error}"[:1900], ok=False)
            raise
        finally:
            self.state = (
                "finished" if ending.ok and not self.stopping else "stopped" if ending.ok else "failed"
            )
            for task in tasks:
                task.cancel()
            await self._end(ending)
        return self.report()

    async def _watch_for_nodes(self) -> None:
        """While no node is here, say so; give up where none ever came within ``network.wait_timeout``."""
        coordinator, waiting = self.coordinator, Waiting(self.clock)
        limit = load().network.wait_timeout
        while True:
            if coordinator.members:
                waiting.over()
            else:
                seconds, trouble = waiting.seconds, coordinator.inquiry.last_trouble
                if limit is not None and seconds > limit and not coordinator.tally.nodes_seen:
                    coordinator.fail(Unreachable(f"no node joined within {limit:g} s (network.wait_timeout)"))
                    return
                host, port = self.listener.address
                since = f" for {format_duration(seconds)}" if seconds >= 1.0 else ""
                waiting.say(
                    f"waiting for nodes at {host}:{port}{since}: paste the join line on a machine that "
                    f"should help (`manyhands invite` prints another)" + (f"; {trouble}" if trouble else "")
                )
            await asyncio.sleep(1.0)

    async def _train(self) -> None:
        coordinator, plan = self.coordinator, self.job.plan
        if coordinator.step >= plan.num_steps and coordinator.tally.nodes_seen:
            # A run that was over before it was resumed: its nodes dial, and should hear that it is.
            ending = m.Finished("the run is complete", ok=True)
            await coordinator.visits.turn_away(ending, LAST_CALL_SECONDS, coordinator.settled)
        while len(coordinator.members) < self.hold_for_nodes and not self.stopping:
            await asyncio.sleep(0.02)
        while coordinator.step < plan.num_steps and not (self.stopping or coordinator.tally.stopped_early):
            data = await coordinator.next_step()
            if self._is_stopping():
                return
            if self._saving is not None:
                await self._saving
            loss = await coordinator.commit(data)
            self._after_step(data.plan.step, data.plan.epoch, loss, data.plan.num_samples)
            if await self._after_epoch(data.plan.step, data.plan.epoch):
                return
            if self.clock.monotonic() - self._saved_at >= self.job.options.checkpoint_interval * 60.0:
                self._begin_save()

    def _after_step(self, step: int, epoch: int, loss: float | None, samples: int) -> None:
        now = self.clock.monotonic()
        self._rate.add(samples, now)
        if loss is not None:
            self.coordinator.tally.epoch_loss += loss * samples
            self.coordinator.tally.epoch_samples += samples
        hooks = self.hooks
        if hooks.progress is not None and now - self._shown_at >= SHOW_SECONDS:
            self._shown_at = now
            hooks.progress.update(self.standing())
        if hooks.log is not None and loss is not None:
            hooks.log.write(step, {"loss": loss, "samples_per_s": self._rate.per_second(now)})
        if hooks.on_step is not None:
            hooks.on_step(step=step, epoch=epoch, loss=loss, samples=samples)

    async def _after_epoch(self, step: int, epoch: int) -> bool:
        """Close an epoch where one ends; True when the run should stop early."""
        plan, every = self.job.plan, self.job.options.val_every
        ends = plan.ends_epoch(step)
        result: Validation | None = None
        if self.hooks.val_source is not None and (ends if every is None else (step + 1) % every == 0):
            result = await self._validate()
            if self.hooks.log is not None:
                accuracy = {} if result.accuracy is None else {"val_accuracy": result.accuracy}
                self.hooks.log.write(step, {"val_loss": result.loss, **accuracy})
        if ends:
            self._close_epoch(epoch, result)
        early = self.hooks.early_stopping
        if early is None or result is None:
            return False
        if not early.update(result.loss, result.accuracy, self.job.state.model):
            return False
        early.restore(self.job.state.model)
        self.coordinator.tally.stopped_early = True
        logger.info(
            "stopped early after step %d: no better %s for %d validations",
            step,
            early.monitor,
            early.patience,
        )
        return True

    async def _validate(self) -> Validation:
        source = self.hooks.val_source
        assert source is not None
        size = max(self.job.plan.leaf_samples, 64)
        async with self.coordinator.model_lock:
            return await asyncio.to_thread(validate, self.job.state.model, self.job.objective, source, size)

    def _close_epoch(self, epoch: int, result: Validation | None) -> None:
        tally = self.coordinator.tally
        mean = tally.epoch_loss / tally.epoch_samples if tally.epoch_samples else None
        tally.epoch_loss, tally.epoch_samples = 0.0, 0
        history = tally.history
        history["epochs"].append(epoch)
        history["train_loss"].append(mean)
        history["val_loss"].append(result.loss if result else None)
        history["val_accuracy"].append(result.accuracy if result else None)
        if self.hooks.on_epoch is not None:
            self.hooks.on_epoch(
                epoch=epoch,
                train_loss=mean,
                val_loss=result.loss if result else None,
                val_accuracy=result.accuracy if result else None,
            )

    # ---- saving and ending ----

    def _begin_save(self) -> None:
        self._saved_at = self.clock.monotonic()
        coordinator = self.coordinator
        coordinator.count()
        coordinator.tally.seconds = self._seconds_before + self._saved_at - self._started
        early = self.hooks.early_stopping
        standing = Committed(
            coordinator.step,
            coordinator.tally.to_plain(),
            sorted(coordinator.quarantined),
            early.to_plain() if early is not None else None,
        )
        self._saving = asyncio.create_task(asyncio.to_thread(self.saver.save, self.job, standing))

    async def _save_now(self) -> None:
        if self._saving is not None:
            await self._saving
        self._begin_save()
        assert self._saving is not None
        await self._saving
        self._saving = None

    async def _end(self, ending: m.Finished) -> None:
        """Save what is committed, say goodbye, close; an error while saving is raised last."""
        try:
            if not self.coordinator.is_torn:
                await self._save_now()
        except ManyhandsError as error:
            if ending.ok:
                self.state, ending = "failed", m.Finished(str(error)[:1900], ok=False)
            raise
        finally:
            await self.coordinator.visits.dismiss(ending)
            await self.listener.stop(0.5)
            self.job.feeder.close()
            self.job.master.moving.detach()
            if self.hooks.progress is not None and self._shown_at > -math.inf:
                self.hooks.progress.update(self.standing())
            for thing in (self.hooks.progress, self.hooks.log):
                if thing is not None:
                    thing.close()

    # ---- figures ----

    def standing(self) -> Standing:
        """For the progress line."""
        now, coordinator = self.clock.monotonic(), self.coordinator
        return Standing(
            coordinator.step,
            self.job.plan.num_steps,
            coordinator.loss,
            self._rate.per_second(now),
            len(coordinator.members),
            self.job.plan.epoch_of(max(coordinator.step - 1, 0)),
        )

    def report(self) -> Report:
        """The run's report as of now."""
        tally, plan, step = self.coordinator.tally, self.job.plan, self.coordinator.step
        if self.state == "failed":
            raise RunFailed("a failed run has no report")
        return Report(
            steps=step,
            epochs=len(tally.history["epochs"]),
            samples_applied=tally.samples_applied,
            samples_expected=plan.samples_expected,
            final_loss=tally.final_loss,
            history=tally.history,
            nodes_seen=len(tally.nodes_seen),
            leases=tally.leases,
            reissued=tally.reissued,
            refused=tally.refused,
            skipped=tally.skipped,
            numeric_classes=dict(tally.numeric_classes),
            bit_exact=len(tally.numeric_classes) <= 1,
            seconds=tally.seconds,
            weights_sha256=weights_sha256(self.job.state.model),
        )
