"""The stages that one worker holds in one placement, and a step through them.

::

    execute   for each operation: wait for what the engine needs ─► run ─► send what comes out
              then, with `update`: settle ─► step ─► adopt       all of it without a word of the boss

The arithmetic is `stage.engine`'s, the streams are `post`'s; this file brings one to the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from manyhands.clock import Clock
from manyhands.errors import ProtocolError
from manyhands.pipeline import messages as m
from manyhands.pipeline.memory import free_memory_bytes
from manyhands.pipeline.placement import Placement
from manyhands.pipeline.post import Name, Post, tensors_by_name
from manyhands.pipeline.recipes import build, decode
from manyhands.pipeline.replicas import Replicas
from manyhands.pipeline.stage.engine import Send, StageEngine, StageSettings, Step
from manyhands.pipeline.stage.micro_batches import parts
from manyhands.pipeline.stage.routing import TARGET, Key, Shared
from manyhands.pipeline.stage.updates import STEP, Decision
from manyhands.programs.format import MAX_NODES
from manyhands.programs.plan import Limits
from manyhands.training.criteria import settle
from manyhands.training.objective import Objective
from manyhands.training.seeds import derive, seed_generators


class Stages:
    """What a worker holds of `placement`: `engines` by the numbers of their stages. Used by one thread."""

    def __init__(
        self,
        placement: Placement,
        engines: Mapping[int, StageEngine],
        post: Post,
        device: torch.device,
        clock: Clock,
    ) -> None:
        self.engines = engines
        self.decision: Decision = STEP
        """What the next step does with the gradients, where the boss decided something over all stages."""
        self._placement = placement
        self._post = post
        self._device = device
        self._clock = clock
        self._replicas = Replicas(placement, post, device)
        self._objectives: dict[str, Objective] = {}
        self._is_settled = True

    @classmethod
    def build(
        cls, assign: m.Assign, recipes: Mapping[str, Tensor], post: Post, device: torch.device, clock: Clock
    ) -> Stages:
        """Build the layers of this worker's stages, each with first weights of its own."""
        placement = Placement(assign.graph, tuple(assign.bounds), tuple(assign.owners))
        shared = tuple(Shared(name, tuple(others), tuple(layers)) for name, others, layers in assign.shared)
        given = assign.settings
        settings = StageSettings(given.seed, device, given.precision, given.tied, given.recompute)
        limits = Limits(bytes=free_memory_bytes(device), flops=1 << 62, nodes=MAX_NODES)
        engines = {}
        for stage in placement.stages_of(post.member):
            layers = []
            for layer in placement.layers_of(stage):
                # Each layer's first weights are its own business, wherever it lies.
                seed_generators(derive(settings.run_seed, "layer", layer))
                layers.append(build(decode(recipes[str(layer)].numpy().tobytes()), limits))
            at = stage % placement.num_stages
            engines[stage] = StageEngine.build(
                placement.graph, placement.bounds, at, layers, settings, shared
            )
        return cls(placement, engines, post, device, clock)

    def of_first_replica(self) -> list[StageEngine]:
        """The engines of the first replica's stages."""
        return [one for stage, one in self.engines.items() if self._placement.replica_of(stage) == 0]

    # ---- a pass ----

    def execute(self, command: m.Execute, batch: Mapping[str, Any]) -> dict[str, float]:
        """Run the operations, and the step where there is one.

        Returns the losses of the stages that have them, and of how many seconds it computed in how many ("busy",
        "span"): on a device that runs ahead of Python, what it took to start the work.
        """
        began, busy = self._clock.monotonic(), 0.0
        if "inputs" in batch:
            self._begin(command, batch)
        if "gradient" in batch:
            self._deal("gradient", self._placement.graph.prediction, batch["gradient"], command)
        for kind, stage, micro_batch in command.operations:
            engine = self._engine(stage)
            arrived = self._arrived(engine.needs(kind, micro_batch), stage)
            at = self._clock.monotonic()
            sends = engine.run(kind, micro_batch, arrived)
            busy += self._clock.monotonic() - at
            self._send(stage, sends)
        if command.loss is not None or "inputs" not in batch:
            # There was a backward, perhaps in other replicas only: all of them add up, or none.
            self._is_settled = False
        numbers = {"busy": busy, "span": self._clock.monotonic() - began}
        if command.update is not None:
            self.step(command.update)
        losses = {stage: one.loss for stage, one in self.engines.items() if one.loss is not None}
        return numbers | {f"loss {stage}": float(loss) for stage, loss in losses.items()}

    def _begin(self, command: m.Execute, batch: Mapping[str, Any]) -> None:
        """Deal out what came with the command, as if it had come from stages."""
        objective = None
        if command.loss is not None:
            objective = self._objective(command.loss, batch.get("criterion"))
        is_split = any(kind == "weight_backward" for kind, _, _ in command.operations)
        step = Step(command.step, tuple(command.factors), objective, is_split, command.retains, command.scale)
        for engine in self.engines.values():
            engine.begin(step)
        if "targets" in batch:
            self._deal("value", TARGET, batch["targets"], command)
        for name, whole in batch["inputs"].items():
            self._deal("value", name, whole, command)

    def _deal(self, part: str, name: str, whole: Tensor, command: m.Execute) -> None:
        """Keep the micro-batches of a value of the batch for the stages that run them."""
        edge = next((edge for edge in self._placement.graph.edges if edge.name == name), None)
        pieces = parts(whole, command.micro_batches, batched=edge is None or edge.batched)
        for kind, stage, micro_batch in command.operations:
            phase = "forward" if part == "value" else "backward"
            if kind == phase and any(
                (key.part, key.name) == (part, name) for key in self._engine(stage).needs(phase, micro_batch)
            ):
                piece = pieces[micro_batch - command.first]
                self._post.keep(Name(part, name, micro_batch, stage), piece)

    # ---- the end of a step ----

    def step(self, number: int) -> None:
        """Final gradients, the optimizer's step by the decision that there is, and the new values of copies."""
        self.settle()
        for stage, engine in self.engines.items():
            self._send(stage, engine.update(number, self.decision))
        self.decision = STEP
        for stage, engine in self.engines.items():
            engine.adopt(self._arrived(engine.needs("adopt"), stage))
        self._replicas.follow(self.engines)

    def settle(self) -> None:
        """Make the gradients final, once a step: totals of shared parameters, then the sum over replicas."""
        if self._is_settled:
            return
        # A shared parameter's total goes from its last holder to its first.
        for stage in sorted(self.engines, key=lambda one: one % self._placement.num_stages, reverse=True):
            engine = self.engines[stage]
            self._send(stage, engine.settle(self._arrived(engine.needs("settle"), stage)))
        self._replicas.add_up(self.engines)
        self._is_settled = True

    # ---- what comes and goes ----

    def _arrived(self, keys: list[Key], stage: int) -> dict[Key, Tensor | None]:
        return {key: self._take(key, stage) for key in keys}

    def _take(self, key: Key, stage: int) -> Tensor | None:
        tensor = self._post.value(Name(key.part, key.name, key.micro_batch, stage))
        if tensor is None:
            return None
        if not isinstance(tensor, Tensor):
            raise ProtocolError(f"{key.part} {key.name[:80]!r} came as something that is no tensor")
        return tensor.to(self._device)

    def _send(self, stage: int, sends: list[Send]) -> None:
        first = stage - stage % self._placement.num_stages
        for key, to, tensor in sends:
            there = m.BOSS if to == m.BOSS else first + to
            member = m.BOSS if to == m.BOSS else self._placement.owners[there]
            self._post.send(member, Name(key.part, key.name, key.micro_batch, there), tensor)

    def _objective(self, text: str, tensors: Any) -> Objective:
        if text not in self._objectives or tensors:
            criterion = settle(text, None).to(self._device)
            held = dict(criterion.named_buffers())
            for name, tensor in tensors_by_name(tensors or {}).items():
                if name in held:
                    held[name].copy_(tensor)
            self._objectives[text] = Objective(criterion)
        return self._objectives[text]

    def _engine(self, stage: int) -> StageEngine:
        if stage not in self.engines:
            raise ProtocolError(
                f"the boss asks for stage {stage}, and this worker holds {list(self.engines)}"
            )
        return self.engines[stage]
