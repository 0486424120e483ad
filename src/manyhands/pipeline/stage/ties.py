"""Parameters that several stages hold: how their gradients meet and their values stay one.

::

    stage 0 (owner)          stage 1                stage 2
    first term + own  ◀────  first term + own ◀──── own              a message a micro-batch ("exact"), or one a
        │ the optimizer's step                                       step with the totals ("fast")
        └── new value ─────▶ copy ────────────────▶ copy

The order of additions is that of one process in "exact", where a micro-batch's gradient takes what came as the first
term of autograd's own sum; totals differ in their last bits.
"""

from __future__ import annotations

from torch import Tensor, nn

from manyhands.pipeline.stage.routing import Key, Routes
from manyhands.pipeline.stage.step import Arrived, Send
from manyhands.pipeline.stage.weights import StageWeights


class Ties:
    """The shared parameters of one stage."""

    def __init__(self, weights: StageWeights, routes: Routes, *, is_exact: bool) -> None:
        self.is_exact = is_exact
        self._weights = weights
        self._routes = routes
        self._trainable: dict[str, nn.Parameter] = weights.trainable

    def needs(self, micro_batch: int) -> list[Key]:
        """The keys of the gradients so far."""
        return [Key("tie", name, micro_batch) for name in self._routes.ties_in]

    def first_terms(self, arrived: Arrived) -> list[tuple[Tensor, Tensor]]:
        """Parameters with their gradient so far, for autograd to go on from."""
        return [
            (self._trainable[key.name], tensor)
            for key, tensor in arrived.items()
            if key.part == "tie" and tensor is not None and key.name in self._trainable
        ]

    def add_totals(self, arrived: Arrived) -> None:
        """Put totals that came before the own ones."""
        for parameter, total in self.first_terms(arrived):
            parameter.grad = total if parameter.grad is None else total + parameter.grad

    def take(self, micro_batch: int) -> list[Send]:
        """The gradients of copies, for the next earlier holder; none stay here."""
        sends = []
        for name, to in self._routes.ties_out:
            parameter = self._weights.parameters[name]
            sends.append(Send(Key("tie", name, micro_batch), to, parameter.grad))
            parameter.grad = None
        return sends

    def new_values(self) -> list[Send]:
        """What the optimizer made of the parameters that this stage owns, for those who have copies."""
        return [
            Send(Key("weight", name, 0), to, self._weights.parameters[name].detach())
            for name, stages in self._routes.weights_out.items()
            for to in stages
        ]
