"""The passes of micro-batches through one stage, and what is kept of each between them.

::

    forward ──▶ pending ──▶ backward
                       └──▶ input_backward ──▶ weight_backward

With recomputation a forward keeps what came in and no graph; the first pass back runs it again, with the random
numbers and buffers of the first time. Knows shared parameters only as first terms for autograd.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from torch import Tensor

from manyhands.errors import RunFailed
from manyhands.pipeline.schedules.operations import Kind
from manyhands.pipeline.stage.routing import Key, Routes
from manyhands.pipeline.stage.segments import LOSS, Held, Moment, Segment, Terms, weight_backward
from manyhands.pipeline.stage.step import Arrived, Send, StageSettings, Step
from manyhands.pipeline.stage.weights import StageWeights
from manyhands.training.objective import Objective

FirstTerms = Sequence[tuple[Tensor, Tensor]]
_NO_LOSS: Final = Objective()


@dataclass
class _Pending:
    """A micro-batch between its passes."""

    moment: Moment
    held: list[Held] = field(default_factory=list)
    loss: Tensor | None = None
    inputs: dict[str, Any] | None = None
    """Where the forward runs again: what came in, and the buffers as they were."""
    buffers: list[Tensor] = field(default_factory=list)


class Passes:
    """One step's passes through one stage."""

    def __init__(
        self,
        step: Step,
        routes: Routes,
        segments: Sequence[Segment],
        weights: StageWeights,
        settings: StageSettings,
    ) -> None:
        self.routes = routes
        self.loss: Tensor | None = None
        """The sum of the losses so far, each by its factor, without scale."""
        self._step = step
        self._segments = segments
        self._weights = weights
        self._settings = settings
        self._pending: dict[int, _Pending] = {}

    def forward(self, micro_batch: int, arrived: Arrived) -> list[Send]:
        """Values in, values out."""
        step, settings = self._step, self._settings
        moment = Moment(
            settings.run_seed,
            step.number,
            micro_batch,
            settings.device,
            settings.precision,
            step.objective or _NO_LOSS,
        )
        values: dict[str, Any] = {key.name: tensor for key, tensor in arrived.items()}
        pending = _Pending(moment)
        if step.keeps_graph:
            self._pending[micro_batch] = pending
        if step.keeps_graph and not settings.recompute:
            self._go_forward(pending, values)
        else:
            if step.keeps_graph:
                pending.inputs = dict(values)
                pending.buffers = [buffer.clone() for buffer in self._weights.buffers.values()]
            for segment in self._segments:
                values.update(segment.forward_only(values, moment))
        if LOSS in values:
            self._add_loss(values[LOSS].detach(), step.factors[micro_batch])
        return [
            Send(Key("value", name, micro_batch), to, values[name].detach())
            for name, stages in self.routes.values_out.items()
            for to in stages
        ]

    def backward(self, micro_batch: int, arrived: Arrived, first_terms: FirstTerms) -> list[Send]:
        """Both passes in one: gradients in, gradients out, and those of parameters added to ``.grad``."""
        pending, terms = self._go_back("backward", micro_batch, arrived)
        del self._pending[micro_batch]
        (segment,), (held,) = self._segments, pending.held
        segment.backward(held, terms, first_terms)
        return self._sends(terms, micro_batch)

    def input_backward(self, micro_batch: int, arrived: Arrived) -> list[Send]:
        """Gradients in, gradients out; parameters wait."""
        pending, terms = self._go_back("input_backward", micro_batch, arrived)
        for segment, held in zip(reversed(self._segments), reversed(pending.held), strict=True):
            segment.input_backward(held, terms)
        return self._sends(terms, micro_batch)

    def weight_backward(self, micro_batch: int, first_terms: FirstTerms) -> None:
        """The parameters' gradients, added to ``.grad``."""
        pending = self._find("weight_backward", micro_batch)
        del self._pending[micro_batch]
        weight_backward(pending.held, list(self._weights.trainable.values()), first_terms)

    def _find(self, kind: Kind, micro_batch: int) -> _Pending:
        pending = self._pending.get(micro_batch)
        if pending is None:
            raise RunFailed(
                f"stage {self.routes.stage} was asked for {kind} of micro-batch {micro_batch}, whose forward has not "
                "run in this step, or ran without gradients"
            )
        return pending

    def _go_back(self, kind: Kind, micro_batch: int, arrived: Arrived) -> tuple[_Pending, Terms]:
        pending = self._find(kind, micro_batch)
        if pending.inputs is not None:
            self._recompute(pending, pending.inputs)
        terms: Terms = {key.name: term for key, term in arrived.items() if key.part == "gradient"}
        if pending.loss is not None:
            terms[LOSS] = self._loss_gradient(pending.loss, micro_batch)
        return pending, terms

    def _go_forward(self, pending: _Pending, values: dict[str, Any]) -> None:
        for segment in self._segments:
            outputs, held = segment.forward(values, pending.moment)
            values.update(outputs)
            pending.held.append(held)
        pending.loss = values.get(LOSS)

    def _recompute(self, pending: _Pending, inputs: dict[str, Any]) -> None:
        """The forward again, with a graph now, from the buffers that it had the first time."""
        buffers = list(self._weights.buffers.values())
        now = [buffer.clone() for buffer in buffers]
        _put(buffers, pending.buffers)
        self._go_forward(pending, inputs)
        _put(buffers, now)
        pending.inputs, pending.buffers = None, []

    def _add_loss(self, loss: Tensor, factor: float) -> None:
        if factor != 0.0:
            share = loss if factor == 1.0 else loss * factor
            self.loss = share if self.loss is None else self.loss + share

    def _loss_gradient(self, loss: Tensor, micro_batch: int) -> Tensor | None:
        """What a backward starts from: the derivative of what is added up by the loss itself."""
        factor = self._step.factors[micro_batch]
        if factor == 0.0:
            return None
        gradient = loss.new_full((), factor)
        return gradient if self._step.scale == 1.0 else gradient * self._step.scale

    def _sends(self, terms: Terms, micro_batch: int) -> list[Send]:
        return [
            Send(Key("gradient", name, micro_batch), to, terms.get(name))
            for name, to in self.routes.gradients_out
        ]


def _put(buffers: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for buffer, value in zip(buffers, values, strict=True):
        # Past autograd's count of writes: what a graph saved of them is what its own forward saw.
        buffer.data.copy_(value)
