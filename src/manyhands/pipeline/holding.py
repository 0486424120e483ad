"""What a worker does for its boss: each command, and the answer to it. What computes is `stages`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from manyhands.clock import Clock
from manyhands.errors import ManyhandsError, ProtocolError, RunFailed
from manyhands.pipeline import messages as m
from manyhands.pipeline import snapshots
from manyhands.pipeline.measure import measure_all
from manyhands.pipeline.memory import free_memory_bytes
from manyhands.pipeline.post import Aborted, BossLost, Name, Post, tensors_by_name
from manyhands.pipeline.stage.engine import StageEngine
from manyhands.pipeline.stage.optimizers import OptimizerRecipe
from manyhands.pipeline.stage.updates import Decision
from manyhands.pipeline.stage.weights import StageState
from manyhands.pipeline.stages import Stages


class Holding:
    """The stages of one worker, as the boss has placed them. Used by one thread."""

    def __init__(self, device: torch.device, post: Post, clock: Clock) -> None:
        self.post = post
        self._device = device
        self._clock = clock
        self._stages: Stages | None = None
        self._parts: list[Any] = []

    def obey(self, command: m.FromBoss, tree: Any) -> None:
        """Do it and answer. What goes wrong is told to the boss; only the loss of its stream is raised."""
        try:
            self._do(command, tree)
        except BossLost:
            raise
        except Aborted:
            return  # the boss gave this placement up, and says so to everybody
        except ManyhandsError as error:
            self._fail(command, type(error).__name__, str(error))
        except Exception as error:  # noqa: BLE001 - a process's edge: a layer may raise anything, and the boss must hear
            self._fail(command, RunFailed.__name__, f"{type(error).__name__}: {error}")

    def _do(self, command: m.FromBoss, tree: Any) -> None:
        match command:
            case m.Welcome():
                self.post.member = command.member
            case m.Assign():
                self._assign(command, tree)
            case m.Measure():
                self._measure(command, tree)
            case m.Restore():
                self._restore(command, tree)
            case m.Expect():
                self.post.neighbours.expect(command.member, command.key_id)
                self._answer(command)
            case m.Connect():
                self.post.neighbours.connect(self.post.member, command.member, command.lines)
                self._answer(command)
            case m.Optimize():
                recipe = OptimizerRecipe.from_text(command.kind, command.options)
                for engine in self._engines():
                    engine.set_optimizer(recipe)
                self._answer(command)
            case m.Execute():
                self._answer(command, self._held().execute(command, tree or {}))
            case m.Order():
                self._order(command)
            case _:
                raise ProtocolError(f"a boss does not say {type(command).__name__}")

    def _answer(self, command: Any, numbers: Mapping[str, float] | None = None) -> None:
        self.post.boss.send(m.Answer(self.post.generation, command.command, dict(numbers or {})))

    def _fail(self, command: Any, error: str, sentence: str) -> None:
        number = getattr(command, "command", 0)
        self.post.boss.send(m.Failed(self.post.generation, number, error, sentence[:4000]))

    # ---- a placement ----

    def _begin(self, generation: int, threads: int) -> None:
        """What belongs to an older placement goes."""
        self.post.begin(generation)
        self._stages = None
        self._parts.clear()
        torch.set_num_threads(threads)

    def _measure(self, command: m.Measure, tree: Any) -> None:
        self._begin(command.generation, command.threads)
        numbers = measure_all(
            command.graph, tensors_by_name(tree), command.samples, self._device, self._clock
        )
        self._answer(command, numbers)

    def _assign(self, assign: m.Assign, tree: Any) -> None:
        self._begin(assign.generation, assign.settings.threads)
        self._stages = Stages.build(assign, tensors_by_name(tree), self.post, self._device, self._clock)

    def _restore(self, restore: m.Restore, part: Any) -> None:
        self._parts.append(part)
        if not restore.is_last:
            return
        state = snapshots.joined(self._parts, restore.step, restore.lr)
        self._parts.clear()
        for engine in self._engines():
            if restore.step < 0 and restore.lr is None:
                engine.weights.load({**state.parameters, **state.buffers})
            else:
                engine.restore(state)
        self._answer(restore)

    # ---- short orders ----

    def _order(self, order: m.Order) -> None:
        engines, stages = self._engines(), self._held()
        numbers: dict[str, float] = {}
        match order.what:
            case "step":
                stages.step(int(order.number))
            case "skip":
                stages.decision = Decision(skips=True)
                stages.step(int(order.number))
            case "zero":
                for engine in engines:
                    engine.zero()
            case "train" | "eval":
                for engine in engines:
                    engine.train(order.what == "train")
            case "rate":
                for engine in engines:
                    engine.set_rate(order.number)
            case "norms":
                stages.settle()
                numbers = {name: norm for engine in engines for name, norm in engine.norms().items()}
            case "scale":
                stages.decision = Decision(order.number)
            case "state":
                numbers = self._show_state(stages)
            case "clear":
                for engine in engines:
                    engine.clear()
                if self._device.type == "cuda":
                    torch.cuda.empty_cache()
            case "statistics":
                numbers = self._statistics(engines)
        self._answer(order, numbers)

    def _show_state(self, stages: Stages) -> dict[str, float]:
        """The state of the first replica's stages: the others have the same."""
        own = stages.of_first_replica()
        if not own:
            return {}
        state = StageState.merged(engine.snapshot() for engine in own)
        for at, part in enumerate(snapshots.parts(state)):
            self.post.send(m.BOSS, Name("state", "", at, self.post.member), part)
        return {"step": state.step} | ({} if state.lr is None else {"lr": state.lr})

    def _statistics(self, engines: list[StageEngine]) -> dict[str, float]:
        tensors = [one for engine in engines for one in engine.weights.tensors().values()]
        used = float(torch.cuda.memory_allocated(self._device)) if self._device.type == "cuda" else 0.0
        return {
            "weight_bytes": float(sum(one.nbytes for one in tensors)),
            "allocated_bytes": used,
            "free_bytes": float(free_memory_bytes(self._device)),
        }

    # ---- what is held ----

    def _held(self) -> Stages:
        if self._stages is None:
            raise ProtocolError("the boss asks for work before it has given any stage")
        return self._stages

    def _engines(self) -> list[StageEngine]:
        return list(self._held().engines.values())
