"""What a worker does with the stages that it holds: each command of the boss, step by step.

::

    Execute   for each operation: wait for what the engine needs ─► run ─► send what comes out
              then, with `update`: settle ─► step ─► adopt       all of it without a word of the boss

The arithmetic is `stage.engine`'s, the streams are `post`'s; this file brings one to the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from manyhands.errors import ManyhandsError, ProtocolError, RunFailed
from manyhands.pipeline import messages as m
from manyhands.pipeline import snapshots
from manyhands.pipeline.memory import free_memory_bytes
from manyhands.pipeline.placement import Placement
from manyhands.pipeline.post import Aborted, BossLost, Name, Post
from manyhands.pipeline.recipes import build, decode
from manyhands.pipeline.stage.engine import Send, StageEngine, StageSettings, Step
from manyhands.pipeline.stage.micro_batches import factors, parts
from manyhands.pipeline.stage.optimizers import OptimizerRecipe
from manyhands.pipeline.stage.routing import TARGET, Key, Shared
from manyhands.pipeline.stage.updates import Decision
from manyhands.pipeline.stage.weights import StageState
from manyhands.programs.format import MAX_NODES
from manyhands.programs.plan import Limits
from manyhands.training.criteria import settle
from manyhands.training.objective import Objective
from manyhands.training.seeds import derive, seed_generators


class Holding:
    """The stages of one worker, as the boss has placed them. Used by one thread."""

    def __init__(self, device: torch.device, post: Post) -> None:
        self.post = post
        self._device = device
        self._placement: Placement | None = None
        self._engines: dict[int, StageEngine] = {}
        self._parts: list[Any] = []
        self._objectives: dict[str, Objective] = {}
        self._is_settled = False
        self._decision = Decision()

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
                self._assign(command, _tensors(tree))
            case m.Restore():
                self._restore(command, tree)
            case m.Connect():
                self.post.neighbours.connect(self.post.member, command.member, command.lines)
                self._answer(command)
            case m.Optimize():
                recipe = OptimizerRecipe.from_text(command.kind, command.options)
                for engine in self._engines.values():
                    engine.set_optimizer(recipe)
                self._answer(command)
            case m.Execute():
                self._execute(command, tree or {})
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

    def _assign(self, assign: m.Assign, recipes: Mapping[str, Tensor]) -> None:
        self.post.begin(assign.generation)
        self._engines.clear()
        self._parts.clear()
        torch.set_num_threads(assign.settings.threads)
        self._placement = placement = Placement(assign.graph, tuple(assign.bounds), tuple(assign.owners))
        shared = tuple(Shared(name, tuple(others), tuple(layers)) for name, others, layers in assign.shared)
        settings = StageSettings(
            assign.settings.seed,
            self._device,
            assign.settings.precision,
            assign.settings.tied,
            assign.settings.recompute,
        )
        limits = Limits(bytes=free_memory_bytes(self._device), flops=1 << 62, nodes=MAX_NODES)
        for stage in placement.stages_of(self.post.member):
            layers = []
            for layer in placement.layers_of(stage):
                # Each layer's first weights are its own business, wherever it lies.
                seed_generators(derive(settings.run_seed, "layer", layer))
                layers.append(build(decode(recipes[str(layer)].numpy().tobytes()), limits))
            self._engines[stage] = StageEngine.build(
                placement.graph, placement.bounds, stage, layers, settings, shared
            )

    def _restore(self, restore: m.Restore, part: Any) -> None:
        self._parts.append(part)
        if not restore.is_last:
            return
        state = snapshots.joined(self._parts, restore.step, restore.lr)
        self._parts.clear()
        for engine in self._engines.values():
            if restore.step < 0:
                engine.weights.load({**state.parameters, **state.buffers})
            else:
                engine.restore(state)
        self._answer(restore)

    # ---- a step ----

    def _execute(self, command: m.Execute, batch: Mapping[str, Any]) -> None:
        placement = self._held()
        if "inputs" in batch:
            self._begin(command, placement, batch)
        if "gradient" in batch:
            self._deal(
                "gradient", placement.graph.prediction, placement.last_stage, batch["gradient"], command
            )
        for kind, stage, micro_batch in command.operations:
            engine = self._engine(stage)
            arrived = self._arrived(engine.needs(kind, micro_batch), stage)
            self._send(engine.run(kind, micro_batch, arrived))
        self._is_settled = False
        if command.update is not None:
            self._step(command.update)
        losses = [engine.loss for engine in self._engines.values() if engine.loss is not None]
        self._answer(command, {"loss": float(losses[0])} if losses else None)

    def _begin(self, command: m.Execute, placement: Placement, batch: Mapping[str, Any]) -> None:
        """Deal out what came with the command, as if it had come from stages."""
        shares: tuple[float, ...] = (1.0,) * command.micro_batches
        objective = None
        if command.loss is not None:
            objective = self._objective(command.loss, batch.get("criterion"))
            if "targets" in batch:
                targets = self._deal("value", TARGET, placement.last_stage, batch["targets"], command)
                shares = factors(objective, targets)
        is_split = any(kind == "weight_backward" for kind, _, _ in command.operations)
        step = Step(command.step, shares, objective, is_split, command.retains)
        for stage, engine in self._engines.items():
            engine.begin(step)
            for edge in placement.graph.edges:
                if edge.name in batch["inputs"] and any(
                    placement.stage_of(one) == stage for one in edge.consumers
                ):
                    self._deal(
                        "value", edge.name, stage, batch["inputs"][edge.name], command, batched=edge.batched
                    )

    def _deal(
        self, part: str, name: str, stage: int, whole: Tensor, command: m.Execute, *, batched: bool = True
    ) -> tuple[Tensor, ...]:
        """Keep the micro-batches of a value of the batch for a stage; they."""
        pieces = parts(whole, command.micro_batches, batched=batched)
        for micro_batch, piece in enumerate(pieces):
            self.post.keep(Name(part, name, micro_batch, stage), piece)
        return pieces

    def _step(self, number: int) -> None:
        """The end of a step: totals of shared parameters, the optimizer, and the new values of copies."""
        self._settle()
        for engine in self._engines.values():
            self._send(engine.update(number, self._decision))
        self._decision = Decision()
        for stage, engine in self._engines.items():
            engine.adopt(self._arrived(engine.needs("adopt"), stage))

    def _settle(self) -> None:
        if self._is_settled:
            return
        # A shared parameter's total goes from its last holder to its first.
        for stage, engine in reversed(self._engines.items()):
            self._send(engine.settle(self._arrived(engine.needs("settle"), stage)))
        self._is_settled = True

    def _arrived(self, keys: list[Key], stage: int) -> dict[Key, Tensor | None]:
        return {key: self._take(key, stage) for key in keys}

    def _take(self, key: Key, stage: int) -> Tensor | None:
        tensor = self.post.value(Name(key.part, key.name, key.micro_batch, stage))
        if tensor is None:
            return None
        if not isinstance(tensor, Tensor):
            raise ProtocolError(f"{key.part} {key.name[:80]!r} came as something that is no tensor")
        return tensor.to(self._device)

    def _send(self, sends: list[Send]) -> None:
        owners = self._held().owners
        for key, to, tensor in sends:
            member = m.BOSS if to == m.BOSS else owners[to]
            self.post.send(member, Name(key.part, key.name, key.micro_batch, to), tensor)

    def _objective(self, text: str, tensors: Any) -> Objective:
        if text not in self._objectives or tensors:
            criterion = settle(text, None).to(self._device)
            held = dict(criterion.named_buffers())
            for name, tensor in _tensors(tensors or {}).items():
                if name in held:
                    held[name].copy_(tensor)
            self._objectives[text] = Objective(criterion)
        return self._objectives[text]

    # ---- short orders ----

    def _order(self, order: m.Order) -> None:
        engines = list(self._engines.values())
        numbers: dict[str, float] = {}
        match order.what:
            case "step":
                self._step(int(order.number))
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
                self._settle()
                numbers = {name: norm for engine in engines for name, norm in engine.norms().items()}
            case "scale":
                self._decision = Decision(order.number)
            case "state":
                numbers = self._show_state(engines)
            case "clear":
                for engine in engines:
                    engine.clear()
                if self._device.type == "cuda":
                    torch.cuda.empty_cache()
            case "statistics":
                numbers = self._statistics(engines)
        self._answer(order, numbers)

    def _show_state(self, engines: list[StageEngine]) -> dict[str, float]:
        state = StageState.merged(engine.snapshot() for engine in engines)
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

    def _held(self) -> Placement:
        if self._placement is None:
            raise ProtocolError("the boss asks for work before it has given any stage")
        return self._placement

    def _engine(self, stage: int) -> StageEngine:
        if stage not in self._engines:
            raise ProtocolError(
                f"the boss asks for stage {stage}, and this worker holds {list(self._engines)}"
            )
        return self._engines[stage]


def _tensors(tree: Any) -> dict[str, Tensor]:
    if not isinstance(tree, dict) or not all(isinstance(one, Tensor) for one in tree.values()):
        raise ProtocolError("tensors by name were announced, and something else came")
    return tree
