"""The engine of one stage: operations in, messages for other stages out.

::

    begin(step)
    for each operation:   needs(…) says which keys must have come ──▶ run(…) gives what to send
    settle                shared parameters' totals have come; gradients are final
    norms ──▶ decision    only where something is decided over all stages (clipping, fp16)
    update                the optimizer's step, once for each step number
    adopt                 new values of parameters whose owner is another stage

Whoever drives it (a worker's loop, `local`) brings messages from stage to stage in any way it likes. The engine
waits for nothing and knows no network, no clock and no schedule: only that each pass runs micro-batches in order,
for that is the order in which a parameter's gradients are added up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from manyhands.pipeline.graph import Graph
from manyhands.pipeline.schedules.operations import Kind
from manyhands.pipeline.stage.cutting import bind, cut_stage
from manyhands.pipeline.stage.optimizers import OptimizerRecipe
from manyhands.pipeline.stage.passes import Passes
from manyhands.pipeline.stage.routing import Key, Part, Routes, Shared, route
from manyhands.pipeline.stage.segments import BoundLayer, Segment
from manyhands.pipeline.stage.step import Arrived, Phase, Send, StageSettings, Step
from manyhands.pipeline.stage.ties import Ties
from manyhands.pipeline.stage.updates import STEP, Decision, Update
from manyhands.pipeline.stage.weights import StageState, StageWeights

__all__ = ["Arrived", "Phase", "Send", "StageEngine", "StageSettings", "Step"]

_DEFAULTS = StageSettings()


class StageEngine:
    """One stage of a pipeline. Used by one thread; its process's random numbers are its own."""

    def __init__(
        self,
        routes: Mapping[bool, Routes],
        layers: Sequence[BoundLayer],
        weights: StageWeights,
        settings: StageSettings,
    ) -> None:
        self.weights = weights
        self.settings = settings
        self.stage = routes[True].stage
        """Which stage of the pipeline it is."""
        self._routes = routes
        self._layers = layers
        self._ties = Ties(weights, routes[True], is_exact=settings.tied == "exact")
        self._update = Update(weights)
        self._segments: dict[tuple[bool, bool], tuple[Segment, ...]] = {}
        self._step = Step(-1)
        self._passes = Passes(self._step, routes[True], (), weights, settings)

    @classmethod
    def build(
        cls,
        graph: Graph,
        bounds: Sequence[int],
        stage: int,
        layers: Sequence[nn.Module],
        settings: StageSettings = _DEFAULTS,
        shared: Sequence[Shared] = (),
    ) -> StageEngine:
        """The engine of stage `stage` of `graph` cut at `bounds`, over its built `layers`.

        The modules become the engine's: they go to its device, and parameters that are one are made one.
        """
        routes = {
            at_boss: route(graph, bounds, shared, loss_at_boss=at_boss)[stage] for at_boss in (True, False)
        }
        moved = [layer.to(settings.device) for layer in layers]
        weights = StageWeights.of(moved, shared, routes[True].weights_in)
        return cls(routes, bind(routes[True].layers, moved), weights, settings)

    # ---- a step ----

    def begin(self, step: Step) -> None:
        """A new step: what the one before left unfinished is dropped, gradients stay."""
        at_boss = step.objective is None
        routes, form = self._routes[at_boss], (at_boss, step.is_split)
        if form not in self._segments:
            self._segments[form] = cut_stage(self._layers, routes, is_split=step.is_split)
        self._step = step
        self._passes = Passes(step, routes, self._segments[form], self.weights, self.settings)

    def needs(self, phase: Phase, micro_batch: int = 0) -> list[Key]:
        """What must have come before `phase` can run."""
        routes, ties = self._passes.routes, self._ties
        match phase:
            case "forward":
                return _keys("value", routes.values_in, micro_batch)
            case "backward":
                gradients = _keys("gradient", routes.gradients_in, micro_batch)
                return gradients + ties.needs(micro_batch) if ties.is_exact else gradients
            case "input_backward":
                return _keys("gradient", routes.gradients_in, micro_batch)
            case "weight_backward":
                return ties.needs(micro_batch) if ties.is_exact else []
            case "settle":
                return [] if ties.is_exact else ties.needs(0)
            case "adopt":
                return _keys("weight", routes.weights_in, 0)

    def run(self, kind: Kind, micro_batch: int, arrived: Arrived) -> list[Send]:
        """Run one operation over what it `needs`; returns what it has for others.

        RunFailed for a pass whose earlier one has not run.
        """
        if kind == "forward":
            return self._passes.forward(micro_batch, arrived)
        if kind == "input_backward":
            return self._passes.input_backward(micro_batch, arrived)
        sends: list[Send] = []
        if kind == "backward":
            sends = self._passes.backward(micro_batch, arrived, self._ties.first_terms(arrived))
        else:
            self._passes.weight_backward(micro_batch, self._ties.first_terms(arrived))
        return sends + self._ties.take(micro_batch) if self._ties.is_exact else sends

    @property
    def loss(self) -> Tensor | None:
        """The step's loss so far, a scalar without scale; None where it is taken elsewhere."""
        return self._passes.loss

    # ---- the end of a step ----

    def settle(self, arrived: Arrived) -> list[Send]:
        """Make the step's gradients final, once, over what it `needs`: totals of shared parameters, fp16's scale."""
        sends: list[Send] = []
        if not self._ties.is_exact:
            self._ties.add_totals(arrived)
            sends = self._ties.take(0)
        self._update.unscale(self._step.scale)
        return sends

    def norms(self) -> dict[str, float]:
        """The 2-norm of the gradient of each parameter that this stage steps, once they are final.

        Not finite where the gradient is not.
        """
        return self._update.norms()

    def update(self, number: int, decision: Decision = STEP, *, zero: bool = True) -> list[Send]:
        """The optimizer's step `number`, once: asked again for the same number, nothing is changed.

        With `zero`, gradients are dropped after it. RunFailed for a number that does not come next.
        """
        if self._update.step(number, decision) and zero:
            self.zero()
        return self._ties.new_values()

    def adopt(self, arrived: Arrived) -> None:
        """Take the new values of parameters whose owner is another stage."""
        self.weights.load({key.name: tensor for key, tensor in arrived.items() if tensor is not None})

    def zero(self) -> None:
        """Drop all gradients."""
        for parameter in self.weights.trainable.values():
            parameter.grad = None

    # ---- between steps ----

    def set_optimizer(self, recipe: OptimizerRecipe) -> None:
        """A new optimizer over the parameters that this stage owns; step numbers go on."""
        self._update.set_optimizer(recipe)

    def set_rate(self, lr: float) -> None:
        """The learning rate from the next step on."""
        self._update.set_rate(lr)

    def train(self, mode: bool = True) -> None:
        """Train mode, or eval mode."""
        for bound in self._layers:
            bound.module.train(mode)

    def clear(self) -> None:
        """Forget unfinished micro-batches and all gradients."""
        self.begin(self._step)
        self.zero()

    def gradients(self) -> dict[str, Tensor]:
        """The gradients of the parameters that this stage steps, by name, not copies: for replicas to average,
        after the last weight pass and never before.
        """
        return {name: one.grad for name, one in self.weights.stepped.items() if one.grad is not None}

    def put_gradients(self, gradients: Mapping[str, Tensor]) -> None:
        """Put these in their place; a parameter that is not named has none then."""
        for name, parameter in self.weights.stepped.items():
            parameter.grad = gradients.get(name)

    def snapshot(self) -> StageState:
        """All state, as copies. Between steps: what is unfinished is not in it."""
        return self.weights.snapshot(self._update.optimizer, self._update.number)

    def restore(self, state: StageState) -> None:
        """Take up a state of this or any other cut of the model, and forget what was unfinished."""
        self.clear()
        self.weights.restore(state, self._update.optimizer)
        self._update.number = state.step


def _keys(part: Part, names: Sequence[str], micro_batch: int) -> list[Key]:
    return [Key(part, name, micro_batch) for name in names]
