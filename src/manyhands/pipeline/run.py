"""What a boss does with its pipeline, as coroutines of the crew's event loop; `boss` and `plain` call them.

A run reads the model, cuts it, turns each wish into a `Command` and has the `Driver` do it. It holds no layer: only
what the model begins with (where its user built it), and the snapshots.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import torch
from torch import Tensor, nn

from manyhands.errors import RunFailed, UsageError
from manyhands.observe.metrics import open_log
from manyhands.observe.waiting import tell
from manyhands.pipeline import messages as m
from manyhands.pipeline import views
from manyhands.pipeline.commands import Command, Do, Pass, SetOptimizer
from manyhands.pipeline.crew import Crew, Member
from manyhands.pipeline.driver import Driver
from manyhands.pipeline.graph import MAIN_INPUT
from manyhands.pipeline.models import Example, Reading, check_extras, needs_example, read
from manyhands.pipeline.placing import Stock, merged
from manyhands.pipeline.planning import Options, counted, measured
from manyhands.pipeline.post import Name
from manyhands.pipeline.saving import Saved, find, write
from manyhands.pipeline.stage.micro_batches import factors, parts
from manyhands.pipeline.stage.optimizers import OptimizerRecipe
from manyhands.pipeline.stage.updates import decide, total_norm
from manyhands.pipeline.stage.weights import StageState
from manyhands.store.runs import new_run
from manyhands.training.criteria import describe
from manyhands.training.objective import Objective
from manyhands.training.scale import LossScale

_MOST_KEPT = 64
"""How many commands may be kept of forwards that had no backward before a snapshot is taken instead."""
_INTERLEAVED: Final = 2
"""Stages a worker for the interleaved schedule, where the user's cuts do not say."""


class Run:
    """One model on the workers of `crew`."""

    def __init__(self, crew: Crew, model: Any, options: Options) -> None:
        self._crew = crew
        self._model = model
        self._options = options
        self._driver: Driver | None = None
        self._stock: Stock | None = None
        self._log = open_log(options.log)
        self._optimizer: tuple[str, str] | None = None
        self._is_training = True
        self._passes = 0
        self._updates = 0
        self._runs: dict[Path, str] = {}
        self._resumed: Saved | None = None
        self._forward: Pass | None = None
        self._has_gradients = False
        self._scale = LossScale.of(options.precision)

    # ---- setting up ----

    async def distribute(self) -> None:
        """Read the model, cut it and place it; a module waits for its first batch."""
        if not needs_example(self._model):
            await self._begin(read(self._model))

    async def set_optimizer(self, optimizer: Any, options: Mapping[str, Any]) -> None:
        """The optimizer of every stage; UsageError for one that workers do not have."""
        self._optimizer = OptimizerRecipe.of(optimizer, options).to_text()
        if self._driver is not None:
            await self._send_optimizer(self._driver)

    async def _send_optimizer(self, driver: Driver) -> None:
        if self._optimizer is not None:
            await driver.do(SetOptimizer(driver.next_number(), *self._optimizer))

    async def _begin(self, reading: Reading) -> None:
        seed = int(torch.randint(1 << 62, ()).item())
        folder = Path(self._options.weights) if self._options.weights is not None else None
        given = self._options
        settings = m.Settings(seed, torch.get_num_threads(), given.precision, given.tied, given.recompute)
        stock = Stock(reading, settings, folder)
        members = self._members()
        driver = Driver(self._crew, counted(stock, members, given), stock.parcels, tell)
        await driver.place(await measured(driver, stock, members, given))
        self._stock, self._driver = stock, driver
        if self._resumed is not None:
            await self._go_on(self._resumed, driver, stock)
            self._resumed = None
        else:
            await self._send_optimizer(driver)
            await self._send_mode(driver)

    def _members(self) -> list[Member]:
        """The workers that get stages; those beyond are spares."""
        return self._crew.alive[: self._crew.num_workers]

    async def _suit(self, driver: Driver, schedule: str) -> None:
        """Cut anew where the schedule needs another number of stages a worker than there is."""
        is_several = driver.placement.stages_per_worker > 1
        wanted = schedule == "interleaved"
        if is_several == wanted or (is_several and self._options.cuts is not None):
            return
        await self._snapshot(driver)
        placement = await measured(
            driver, self._held(), self._members(), self._options, _INTERLEAVED if wanted else 1
        )
        await driver.place(placement)

    async def _ready(self, inputs: Mapping[str, Tensor]) -> Driver:
        """The driver of a placed model; the first batch tells the shapes of a module."""
        extra = {name: tensor for name, tensor in inputs.items() if name != MAIN_INPUT}
        if self._driver is None and needs_example(self._model):
            await self._begin(read(self._model, Example(inputs[MAIN_INPUT], extra)))
        driver = self._placed()
        assert self._stock is not None
        check_extras(self._stock.graph, extra)
        return driver

    def _placed(self) -> Driver:
        if self._driver is None:
            raise UsageError(f"the model is not on its workers yet: {self._way_there()}")
        return self._driver

    def _way_there(self) -> str:
        if needs_example(self._model):
            return "a module says no shapes, so its first batch places it; call forward or train_batch first"
        return "await boss.distribute_model() first"

    # ---- a step ----

    async def forward(
        self, x: Tensor, extra: Mapping[str, Tensor], *, retains: bool, micro_batches: int = 1
    ) -> tuple[Tensor, int]:
        """The prediction, and the number of the pass that `backward` goes back through.

        Each replica takes a part of the batch, as far as it has samples for all.
        """
        inputs = _inputs(x, extra)
        micro_batches = max(micro_batches, min(self._options.replicas, len(x) if x.ndim else 1))
        driver = await self._ready(inputs)
        if retains and self._forward is not None and len(driver.log) > _MOST_KEPT:
            self._forward = None
            await self._snapshot(driver)
        command = Pass(
            driver.next_number(),
            self._next_pass(),
            "forward",
            inputs,
            micro_batches=micro_batches,
            factors=(1.0,) * micro_batches,
            scale=self._scale.value,
            retains=retains,
        )
        outcome = await driver.do(command)
        self._forward = command if retains else None
        edge = driver.placement.graph.prediction
        pieces = [outcome.values[Name("value", edge, at, m.BOSS)] for at in range(micro_batches)]
        return pieces[0] if micro_batches == 1 else torch.cat(pieces), command.pass_number

    async def backward(self, gradient: Tensor, pass_number: int | None = None) -> None:
        """Send the prediction's gradient back through the last forward, which is pass `pass_number` if given."""
        driver = self._placed()
        if self._forward is None:
            raise UsageError("there is no forward to go back through: call forward first, with gradients on")
        last = self._forward
        if pass_number not in (None, last.pass_number):
            raise UsageError(
                "this prediction is not the last one: workers keep what the last forward needs, so go back through "
                "each prediction before the next forward"
            )
        await driver.do(
            Pass(
                driver.next_number(),
                last.pass_number,
                "backward",
                gradient=gradient.detach() * last.scale if last.scale != 1.0 else gradient.detach(),
                micro_batches=last.micro_batches,
                factors=last.factors,
                scale=last.scale,
            )
        )
        self._forward, self._has_gradients = None, True

    async def step(self) -> None:
        """One step of every stage's optimizer; the gradients are forgotten."""
        driver = self._placed()
        self._check_optimizer()
        skips = (
            self._scale.is_used
            and decide(await self._norms(driver), (), max_norm=None, skips_non_finite=True).skips
        )
        await driver.do(Do(driver.next_number(), "skip" if skips else "step", float(self._updates)))
        self._has_gradients = False
        if skips:
            self._scale.overflowed()
        else:
            self._scale.committed()
        await self._updated(driver)

    async def train(
        self,
        x: Tensor,
        targets: Any,
        loss_fn: Any,
        micro_batches: int,
        schedule: str,
        extra: Mapping[str, Tensor],
    ) -> float:
        """Forward, loss, backward and step over one batch; the mean loss."""
        self._check_optimizer()
        loss = describe(loss_fn)
        idle: dict[str, float] = {}
        if loss is None or "loss" not in json.loads(loss):
            mean = await self._train_with(loss_fn, x, targets, micro_batches, extra)
        else:
            inputs = _inputs(x, extra)
            driver = await self._ready(inputs)
            counts = factors(Objective(loss_fn), parts(targets, micro_batches))
            await self._suit(driver, schedule)
            command = Pass(
                driver.next_number(),
                self._next_pass(),
                "train",
                inputs,
                targets,
                loss=loss,
                criterion={name: one.detach() for name, one in loss_fn.named_buffers()},
                micro_batches=micro_batches,
                factors=counts,
                scale=self._scale.value,
                schedule=schedule,
                # In fp16 all stages must know first whether every gradient is finite.
                update=None if self._scale.is_used else self._updates,
            )
            outcome = await driver.do(command)
            told, idle = outcome.loss(), {"idle_share": outcome.idle_share()}
            if told is None:
                raise RunFailed("no worker told the loss of this step: the last stage should have")
            mean = told
            self._forward, self._has_gradients = None, command.update is None
            if command.update is None:
                await self.step()
            else:
                await self._updated(driver)
        self._log.write(self._updates, {"loss": mean, **idle})
        return mean

    async def _train_with(
        self, loss_fn: Any, x: Tensor, targets: Any, micro_batches: int, extra: Mapping[str, Tensor]
    ) -> float:
        """The same with a loss that is code of the user's: it is taken here, over the whole batch."""
        prediction, number = await self.forward(x, extra, retains=True, micro_batches=micro_batches)
        with torch.enable_grad():
            prediction.requires_grad_()
            loss = loss_fn(prediction, targets)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise UsageError(f"the loss must be one number, and loss_fn gave {loss!r:.80}")
        (gradient,) = torch.autograd.grad(loss, prediction)
        await self.backward(gradient, number)
        await self.step()
        return float(loss.detach())

    async def _updated(self, driver: Driver) -> None:
        self._updates += 1
        if self._updates % self._options.snapshot_every == 0:
            state = await self._snapshot(driver)
            if self._options.checkpoint_dir is not None:
                await self._write(Path(self._options.checkpoint_dir), state)

    async def _snapshot(self, driver: Driver) -> StageState:
        """Bring the state of every stage here: from now on a loss goes back no further than to it."""
        outcome = await driver.do(Do(driver.next_number(), "state"))
        state = merged(outcome)
        if self._forward is None and not self._has_gradients:
            self._held().take(state, self._standing())
            driver.log.clear()
        return state

    def _next_pass(self) -> int:
        self._passes += 1
        return self._passes

    def _check_optimizer(self) -> None:
        if self._optimizer is None:
            raise UsageError(
                "there is no optimizer yet: await boss.send_optimizer(torch.optim.Adam, {'lr': 3e-3})"
            )

    def _standing(self) -> list[Command]:
        """What no state holds: the optimizer's kind, and train or eval."""
        standing: list[Command] = [Do(0, "train" if self._is_training else "eval")]
        return [SetOptimizer(0, *self._optimizer), *standing] if self._optimizer is not None else standing

    # ---- around it ----

    async def set_mode(self, *, training: bool) -> None:
        """Train or evaluation mode."""
        self._is_training = training
        if self._driver is not None or not needs_example(self._model):
            await self._send_mode(self._placed())

    async def _send_mode(self, driver: Driver) -> None:
        await driver.do(Do(driver.next_number(), "train" if self._is_training else "eval"))

    async def set_rate(self, lr: float) -> None:
        """The learning rate from the next step on."""
        driver = self._placed()
        await driver.do(Do(driver.next_number(), "rate", lr))

    async def zero(self) -> None:
        """Forget all gradients; workers are asked only where there are some."""
        if self._has_gradients:
            driver = self._placed()
            await driver.do(Do(driver.next_number(), "zero"))
            self._has_gradients = False

    async def clip(self, max_norm: float) -> float:
        """Scale all gradients by the norm over the whole model; the norm before."""
        driver = self._placed()
        assert self._stock is not None
        order = list(dict.fromkeys(name for layer in self._stock.parameters for name in layer))
        norms = await self._norms(driver)
        decision = decide(norms, order, max_norm=max_norm, skips_non_finite=self._scale.is_used)
        if decision.coefficient is not None:
            await driver.do(Do(driver.next_number(), "scale", decision.coefficient))
        return total_norm(norms, order)

    async def _norms(self, driver: Driver) -> dict[str, float]:
        """The norm of each gradient; not finite where one is not."""
        outcome = await driver.do(Do(driver.next_number(), "norms"))
        return {name: norm for numbers in outcome.numbers.values() for name, norm in numbers.items()}

    async def clear(self) -> None:
        """Free what workers keep of forwards that had no backward."""
        driver = self._placed()
        self._forward = None
        await driver.do(Do(driver.next_number(), "clear"))

    # ---- state ----

    async def state_dict(self) -> dict[str, Tensor]:
        """All parameters and buffers by their original names; tied ones under each name."""
        if self._driver is None and isinstance(self._model, nn.Module) and self._options.weights is None:
            # A module that waits for its first batch is still what its user made of it.
            own: dict[str, Tensor] = self._model.state_dict()
            if not any(one.is_meta for one in own.values()):
                return {name: one.detach().to("cpu", copy=True) for name, one in own.items()}
        state = await self._snapshot(self._placed())
        return self._held().named(state)

    async def load_state_dict(self, weights: Mapping[str, Tensor]) -> None:
        """Put these weights onto the workers; the optimizer's state stays, gradients are forgotten."""
        driver, stock = self._placed(), self._held()
        changed = stock.with_weights(await self._snapshot(driver), weights)
        await self._start_from(changed, driver, stock)

    async def save(self, path: Path) -> Path:
        """A checkpoint of this moment under `path`; its folder."""
        state = await self._snapshot(self._placed())
        return await self._write(path, state)

    async def _write(self, path: Path, state: StageState) -> Path:
        if path not in self._runs:
            self._runs[path] = await asyncio.to_thread(new_run, path)
        saved = Saved(
            state,
            self._updates,
            self._passes,
            self._held().settings.seed,
            self._optimizer,
            self._scale.to_plain(),
        )
        return await asyncio.to_thread(write, path, self._runs[path], saved, self._held().aliases)

    async def resume(self, path: Path) -> None:
        """Go on from the newest whole checkpoint under `path`."""
        saved = await asyncio.to_thread(find, path)
        if self._driver is None:
            self._resumed = saved
            if needs_example(self._model):
                return  # the first batch places it, and then it goes on
            await self.distribute()
            return
        await self._go_on(saved, self._driver, self._held())

    async def _go_on(self, saved: Saved, driver: Driver, stock: Stock) -> None:
        stock.check(saved.state)
        if saved.optimizer is not None:
            self._optimizer = saved.optimizer
        self._updates, self._passes = saved.updates, saved.passes
        if self._scale.is_used:
            self._scale.load(saved.scale)
        stock.settings = msgspec.structs.replace(stock.settings, seed=saved.seed)
        await self._start_from(saved.state, driver, stock)

    async def _start_from(self, state: StageState, driver: Driver, stock: Stock) -> None:
        """Put a state onto the workers; nothing of what was before is done again."""
        self._forward, self._has_gradients = None, False
        stock.take(state, self._standing())
        driver.log.clear()
        await driver.place()

    def _held(self) -> Stock:
        if self._stock is None:
            raise UsageError(f"the model is not on its workers yet: {self._way_there()}")
        return self._stock

    # ---- views ----

    async def dependencies(self) -> dict[str, list[int]]:
        """The edges that pass over a cut, with the stages that take it; none before a module's first batch."""
        if self._driver is None and needs_example(self._model):
            return {}
        return views.dependencies(self._placed().placement)

    async def layers(self) -> list[dict[str, Any]]:
        """One row a layer."""
        return views.layers(self._placed().placement, self._crew.members, self._held().num_parameters)

    async def memory(self) -> list[dict[str, Any]]:
        """One row a worker."""
        driver = self._placed()
        outcome = await driver.do(Do(driver.next_number(), "statistics"))
        return views.memory(driver.placement, self._crew.members, outcome)


def _inputs(x: Tensor, extra: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The batch's edges by name."""
    return {MAIN_INPUT: x.detach(), **{name: one.detach() for name, one in extra.items()}}
