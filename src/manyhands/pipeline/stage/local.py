"""All stages of a pipeline in one process and one thread: for proofs and tests, and to see how stages are driven.

Each worker's operations run in its own order; one that waits for a message lets the next worker run. What comes out
is what workers on many machines compute, to the bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from manyhands.errors import RunFailed
from manyhands.pipeline.graph import BATCH, MAIN_INPUT, Graph
from manyhands.pipeline.messages import BOSS
from manyhands.pipeline.schedules.operations import Operation, Schedule
from manyhands.pipeline.stage.engine import Phase, Send, StageEngine, StageSettings, Step
from manyhands.pipeline.stage.micro_batches import factors, parts
from manyhands.pipeline.stage.optimizers import OptimizerRecipe
from manyhands.pipeline.stage.routing import TARGET, Key, shared_parameters
from manyhands.pipeline.stage.updates import decide
from manyhands.pipeline.stage.weights import StageState
from manyhands.training.objective import Objective
from manyhands.training.scale import LossScale
from manyhands.training.seeds import generators


@dataclass
class LocalPipeline:
    """A model cut into stages that all live here. `engines` are one a stage."""

    graph: Graph
    engines: Sequence[StageEngine]
    order: Sequence[str]
    """The names of the model's parameters in its own order, for the global norm."""
    scale: LossScale
    step_number: int = 0
    trace: list[Operation] = field(default_factory=list)
    """The operations of the last step in the order in which they ran."""
    _mail: dict[tuple[int, Key], Tensor | None] = field(default_factory=dict)

    @classmethod
    def build(
        cls,
        graph: Graph,
        layers: Sequence[nn.Module],
        bounds: Sequence[int],
        settings: StageSettings | None = None,
        order: Sequence[str] | None = None,
    ) -> LocalPipeline:
        """The pipeline of built `layers`, one a layer of `graph`, cut at `bounds` (see `routing.route`).

        The modules become the engines'. `order` is that of the model's parameters where it is not the layers'.
        """
        chosen = settings or StageSettings()
        names = [[name for name, _ in layer.named_parameters()] for layer in layers]
        shared = shared_parameters(graph, names)
        engines = [
            StageEngine.build(graph, bounds, stage, layers[bounds[stage] : bounds[stage + 1]], chosen, shared)
            for stage in range(len(bounds) - 1)
        ]
        owned = {name: one for engine in engines for name, one in engine.weights.tensors().items()}
        for engine in engines:
            engine.weights.load(owned)  # copies begin as their owner does
        listed = order or list(dict.fromkeys(name for of_layer in names for name in of_layer))
        return cls(graph, engines, listed, LossScale.of(chosen.precision))

    def set_optimizer(self, recipe: OptimizerRecipe) -> None:
        """The optimizer of all stages."""
        for engine in self.engines:
            engine.set_optimizer(recipe)

    def train_batch(
        self,
        schedule: Schedule,
        x: Tensor,
        target: Tensor,
        objective: Objective,
        *,
        num_micro_batches: int = 1,
        extra: Mapping[str, Tensor] | None = None,
        max_norm: float | None = None,
    ) -> float:
        """One step over a batch: forwards, backwards, the optimizer's step. Returns the loss."""
        loss = self.backward_batch(
            schedule, x, target, objective, num_micro_batches=num_micro_batches, extra=extra
        )
        self.step(max_norm)
        return loss

    def backward_batch(
        self,
        schedule: Schedule,
        x: Tensor,
        target: Tensor,
        objective: Objective,
        *,
        num_micro_batches: int = 1,
        extra: Mapping[str, Tensor] | None = None,
    ) -> float:
        """The forwards and backwards of a batch, up to final gradients. Returns the loss."""
        targets = parts(target, num_micro_batches)
        step = Step(
            self.step_number,
            factors(objective, targets),
            objective,
            is_split=any(one.kind == "input_backward" for operations in schedule for one in operations),
            scale=self.scale.value,
        )
        self._run(schedule, step, self._values(x, extra or {}, num_micro_batches), targets)
        self._each("settle")
        return sum(float(engine.loss) for engine in self.engines if engine.loss is not None)

    def predict(self, x: Tensor, extra: Mapping[str, Tensor] | None = None) -> Tensor:
        """The prediction of a whole batch, without gradients, in the mode that the stages are in."""
        return self._forward(x, extra or {}, keeps_graph=False)

    def forward(self, x: Tensor, extra: Mapping[str, Tensor] | None = None) -> Tensor:
        """The prediction of a whole batch, for a loss that is taken here; `backward` follows."""
        return self._forward(x, extra or {}, keeps_graph=True)

    def backward(self, gradient: Tensor) -> None:
        """Go back from the gradient of the last `forward`'s prediction: adds to the stages' gradients."""
        key = Key("gradient", self.graph.prediction, 0)
        last = max(engine.stage for engine in self.engines if key in engine.needs("backward"))
        self._mail[last, key] = gradient
        self._go([[Operation("backward", stage, 0)] for stage in range(len(self.engines))])
        self._each("settle")

    def step(self, max_norm: float | None = None) -> None:
        """The optimizer's step over the gradients that there are, clipped to a global norm."""
        is_decided = max_norm is not None or self.scale.is_used
        norms = {k: v for engine in self.engines for k, v in engine.norms().items()} if is_decided else {}
        decision = decide(norms, self.order, max_norm=max_norm, skips_non_finite=self.scale.is_used)
        for engine in self.engines:
            self._post(engine.update(self.step_number, decision))
        self._each("adopt")
        self.step_number += 1
        if decision.skips:
            self.scale.overflowed()
        else:
            self.scale.committed()

    def train(self, mode: bool = True) -> None:
        """Train mode, or eval mode."""
        for engine in self.engines:
            engine.train(mode)

    def snapshot(self) -> StageState:
        """The state of the whole model."""
        return StageState.merged(engine.snapshot() for engine in self.engines)

    def restore(self, state: StageState) -> None:
        """Take up a state, of this or of another cut."""
        for engine in self.engines:
            engine.restore(state)
        self.step_number = state.step + 1

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers by the model's names; not copies."""
        return {name: one for engine in self.engines for name, one in engine.weights.tensors().items()}

    def _forward(self, x: Tensor, extra: Mapping[str, Tensor], *, keeps_graph: bool) -> Tensor:
        schedule = [[Operation("forward", stage, 0)] for stage in range(len(self.engines))]
        step = Step(self.step_number, keeps_graph=keeps_graph)
        self._run(schedule, step, self._values(x, extra, 1), ())
        prediction = self._mail.pop((BOSS, Key("value", self.graph.prediction, 0)))
        assert prediction is not None  # values always are
        return prediction

    def _values(
        self, x: Tensor, extra: Mapping[str, Tensor], num_parts: int
    ) -> dict[str, tuple[Tensor, ...]]:
        given = {MAIN_INPUT: x, **extra}
        return {
            edge.name: parts(given[edge.name], num_parts, batched=edge.batched)
            for edge in self.graph.edges
            if edge.producer == BATCH
        }

    def _run(
        self,
        schedule: Iterable[Iterable[Operation]],
        step: Step,
        values: Mapping[str, Sequence[Tensor]],
        targets: Sequence[Tensor],
    ) -> None:
        self._mail.clear()
        self.trace.clear()
        for engine in self.engines:
            engine.begin(step)
            for key in (key for at in range(len(step.factors)) for key in engine.needs("forward", at)):
                source = targets if key.name == TARGET else values.get(key.name)
                if source is not None:
                    self._mail[engine.stage, key] = source[key.micro_batch]
        self._go(schedule)

    def _go(self, schedule: Iterable[Iterable[Operation]]) -> None:
        waiting = [list(operations) for operations in schedule]
        with generators(0):  # the engines seed what they draw; the caller's numbers go on as they were
            while any(waiting):
                if not sum(self._advance(operations) for operations in waiting):
                    stuck = ", ".join(str(operations[0]) for operations in waiting if operations)
                    raise RunFailed(f"every worker of this schedule waits for another one: {stuck}")

    def _advance(self, operations: list[Operation]) -> int:
        """Run what can run of one worker's operations; how many did."""
        done = 0
        for one in operations:
            engine = self.engines[one.stage]
            keys = engine.needs(one.kind, one.micro_batch)
            if any((one.stage, key) not in self._mail for key in keys):
                break
            self._post(engine.run(one.kind, one.micro_batch, self._arrived(one.stage, keys)))
            self.trace.append(one)
            done += 1
        del operations[:done]
        return done

    def _each(self, phase: Phase) -> None:
        """One end of the step on every stage, the last stage first: so that what it sends has come."""
        for engine in reversed(self.engines):
            arrived = self._arrived(engine.stage, engine.needs(phase))
            if phase == "settle":
                self._post(engine.settle(arrived))
            else:
                engine.adopt(arrived)

    def _arrived(self, stage: int, keys: Iterable[Key]) -> dict[Key, Tensor | None]:
        return {key: self._mail.pop((stage, key)) for key in keys}

    def _post(self, sends: Iterable[Send]) -> None:
        for send in sends:
            self._mail[send.to, send.key] = send.tensor
