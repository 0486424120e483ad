"""A model on the workers of a crew: read, cut, placed, brought home, saved and taken up again.

It holds no layer: only what the model begins with (where its user built it), and the newest snapshot. What is computed
with the model is `run`'s business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import msgspec
import torch
from torch import Tensor, nn

from manyhands.errors import UsageError
from manyhands.observe.waiting import tell
from manyhands.pipeline import messages as m
from manyhands.pipeline import views
from manyhands.pipeline.commands import Do, SetOptimizer
from manyhands.pipeline.crew import Crew
from manyhands.pipeline.driver import Driver
from manyhands.pipeline.graph import MAIN_INPUT
from manyhands.pipeline.members import Member
from manyhands.pipeline.models import Example, Reading, check_extras, needs_example, read
from manyhands.pipeline.outcome import Outcome
from manyhands.pipeline.placing import Stock, merged
from manyhands.pipeline.planning import Options, counted, measured
from manyhands.pipeline.saving import Checkpoints, Saved, find
from manyhands.pipeline.stage.optimizers import OptimizerRecipe
from manyhands.pipeline.stage.weights import StageState
from manyhands.pipeline.standing import Standing
from manyhands.training.scale import LossScale

_INTERLEAVED: Final = 2
"""Stages a worker for the interleaved schedule, where the user's cuts do not say."""


class Deployment:
    """One model on the workers of `crew`. Coroutines of the crew's event loop."""

    def __init__(self, crew: Crew, model: Any, options: Options) -> None:
        self.options = options
        self.standing = Standing(LossScale.of(options.precision))
        self._crew = crew
        self._model = model
        self._placed: tuple[Driver, Stock] | None = None
        self._resumed: Saved | None = None
        self._checkpoints = Checkpoints()

    # ---- placing ----

    @property
    def driver(self) -> Driver:
        """Who has the workers do things. UsageError while the model is not on them."""
        return self._both()[0]

    @property
    def stock(self) -> Stock:
        """What the stages are made of. UsageError while the model is not on its workers."""
        return self._both()[1]

    def _both(self) -> tuple[Driver, Stock]:
        if self._placed is None:
            way = "await boss.distribute_model() first"
            if needs_example(self._model):
                way = (
                    "a module says no shapes, so its first batch places it; call forward or train_batch first"
                )
            raise UsageError(f"the model is not on its workers yet: {way}")
        return self._placed

    @property
    def _waits_for_a_batch(self) -> bool:
        return self._placed is None and needs_example(self._model)

    async def distribute(self) -> None:
        """Read the model, cut it and place it; a module waits for its first batch."""
        if not needs_example(self._model):
            await self._begin(read(self._model))

    async def ready(self, inputs: Mapping[str, Tensor]) -> Driver:
        """The driver of the placed model; the first batch tells the shapes of a module."""
        extra = {name: tensor for name, tensor in inputs.items() if name != MAIN_INPUT}
        if self._waits_for_a_batch:
            await self._begin(read(self._model, Example(inputs[MAIN_INPUT], extra)))
        check_extras(self.stock.graph, extra)
        return self.driver

    async def suit(self, schedule: str) -> None:
        """Cut anew where the schedule needs another number of stages a worker than there is."""
        is_several = self.driver.placement.stages_per_worker > 1
        wanted = schedule == "interleaved"
        if is_several == wanted or (is_several and self.options.cuts is not None):
            return
        await self.snapshot()
        stages = _INTERLEAVED if wanted else 1
        await self.driver.place(
            await measured(self.driver, self.stock, self._members(), self.options, stages)
        )

    async def _begin(self, reading: Reading) -> None:
        seed = int(torch.randint(1 << 62, ()).item())
        given = self.options
        folder = Path(given.weights) if given.weights is not None else None
        settings = m.Settings(seed, torch.get_num_threads(), given.precision, given.tied, given.recompute)
        stock = Stock(reading, settings, folder)
        members = self._members()
        driver = Driver(self._crew, counted(stock, members, given), stock.parcels, tell)
        await driver.place(await measured(driver, stock, members, given))
        self._placed = driver, stock
        if self._resumed is not None:
            await self._go_on(self._resumed)
            self._resumed = None
        else:
            for command in self.standing.commands():
                await driver.do(replace(command, number=driver.next_number()))

    def _members(self) -> list[Member]:
        """The workers that get stages; those beyond are spares."""
        return self._crew.alive[: self._crew.num_workers]

    # ---- what every stage is told ----

    async def order(self, what: m.What, value: float = 0.0) -> Outcome:
        """Have every worker do one of the short orders."""
        return await self.driver.do(Do(self.driver.next_number(), what, value))

    async def set_optimizer(self, optimizer: Any, options: Mapping[str, Any]) -> None:
        """The optimizer of every stage; UsageError for one that workers do not have."""
        self.standing.optimizer = OptimizerRecipe.of(optimizer, options).to_text()
        if self._placed is not None:
            await self.driver.do(SetOptimizer(self.driver.next_number(), *self.standing.optimizer))

    async def set_mode(self, *, training: bool) -> None:
        """Train or evaluation mode."""
        self.standing.is_training = training
        if not self._waits_for_a_batch:
            await self.order("train" if training else "eval")

    # ---- state ----

    async def snapshot(self) -> StageState:
        """Bring the state of every stage here: from now on a loss goes back no further than to it."""
        state = merged(await self.order("state"))
        if self.standing.is_between_steps:
            self.stock.take(state, self.standing.commands())
            self.driver.log.clear()
        return state

    async def state_dict(self) -> dict[str, Tensor]:
        """All parameters and buffers by their original names; tied ones under each name."""
        if self._placed is None and isinstance(self._model, nn.Module) and self.options.weights is None:
            # A module that waits for its first batch is still what its user made of it.
            own: dict[str, Tensor] = self._model.state_dict()
            if not any(one.is_meta for one in own.values()):
                return {name: one.detach().to("cpu", copy=True) for name, one in own.items()}
        state = await self.snapshot()
        return self.stock.named(state)

    async def load_state_dict(self, weights: Mapping[str, Tensor]) -> None:
        """Put these weights onto the workers; the optimizer's state stays, gradients are forgotten."""
        await self._start_from(self.stock.with_weights(await self.snapshot(), weights))

    async def checkpoint(self) -> None:
        """What `snapshot_every` asks for: a snapshot, and a checkpoint where there is a folder for them."""
        state = await self.snapshot()
        if self.options.checkpoint_dir is not None:
            await self._write(Path(self.options.checkpoint_dir), state)

    async def save(self, path: Path) -> Path:
        """A checkpoint of this moment under `path`; its folder."""
        return await self._write(path, await self.snapshot())

    async def resume(self, path: Path) -> None:
        """Go on from the newest whole checkpoint under `path`."""
        saved = await asyncio.to_thread(find, path)
        if self._placed is not None:
            await self._go_on(saved)
            return
        self._resumed = saved  # a module's first batch places it, and then it goes on
        await self.distribute()

    async def _write(self, path: Path, state: StageState) -> Path:
        saved = self.standing.saved(state, self.stock.settings.seed)
        return await asyncio.to_thread(self._checkpoints.write, path, saved, self.stock.aliases)

    async def _go_on(self, saved: Saved) -> None:
        self.stock.check(saved.state)
        self.standing.load(saved)
        self.stock.settings = msgspec.structs.replace(self.stock.settings, seed=saved.seed)
        await self._start_from(saved.state)

    async def _start_from(self, state: StageState) -> None:
        """Put a state onto the workers; nothing of what was before is done again."""
        self.standing.forget()
        self.stock.take(state, self.standing.commands())
        self.driver.log.clear()
        await self.driver.place()

    # ---- views ----

    async def dependencies(self) -> dict[str, list[int]]:
        """The edges that pass over a cut, with the stages that take it; none before a module's first batch."""
        return {} if self._waits_for_a_batch else views.dependencies(self.driver.placement)

    async def layers(self) -> list[dict[str, Any]]:
        """One row a layer."""
        return views.layers(self.driver.placement, self._crew.members, self.stock.num_parameters)

    async def memory(self) -> list[dict[str, Any]]:
        """One row a worker."""
        outcome = await self.order("statistics")
        return views.memory(self.driver.placement, self._crew.members, outcome)
