"""A run of layers that is one piece of the autograd graph, and the passes of a micro-batch through it.

::

    values ──▶ [leaf ─▶ layer ─▶ layer ─▶ output] ──▶ values       forward
    terms  ◀── [leaf ◀─ layer ◀─ layer ◀─ output] ◀── terms        backward, or input pass + weight pass

`terms` holds for each edge its gradient so far: what consumers behind this segment have added up. It goes into
autograd as a root beside the others, so that it is the first term of autograd's own sum at that tensor; autograd
adds the consumers of the segment to it in the order of one process.

A segment is a whole stage where a backward is one pass. Where it is two, a stage is cut behind each layer that has
weights: the input pass leaves them out, and the weight pass starts at each such layer's output again and goes no
further back than its weights (after Qi et al. 2023, Zero Bubble Pipeline Parallelism). Nothing is computed twice but
what lies inside one layer of several operators.

Knows nothing of other stages, messages or optimizers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from manyhands.errors import RunFailed
from manyhands.pipeline.graph import Layer
from manyhands.pipeline.stage.drawing import seed_layer
from manyhands.pipeline.stage.routing import TARGET
from manyhands.training.objective import Objective
from manyhands.training.step import Precision, autocast

LOSS: Final = "<loss>"
"""The edge that the loss leaves by."""

Terms = dict[str, Tensor | None]
"""For each edge its gradient so far; None where nothing that was differentiated depends on it."""


class BoundLayer(NamedTuple):
    """A layer with its module, which takes its inputs and gives a tensor or one for each output."""

    layer: Layer
    module: nn.Module
    call: Callable[..., Any]
    """What computes it: the module, or what is alone in it."""
    may_draw: bool


@dataclass(frozen=True)
class Moment:
    """What a forward depends on beside its inputs and weights."""

    run_seed: int
    step: int
    micro_batch: int
    device: torch.device
    precision: Precision
    objective: Objective


@dataclass
class Held:
    """What a micro-batch leaves in a segment between its passes."""

    leaves: dict[str, Tensor] = field(default_factory=dict)
    """Inputs that take a gradient."""
    outputs: dict[str, Tensor] = field(default_factory=dict)
    """Outputs that a gradient may come for."""
    roots: list[Tensor] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)
    """For the weight pass: outputs and their whole gradients."""


@dataclass(frozen=True)
class Segment:
    """Layers that run one after the other; `inputs` come from outside, `outputs` are wanted outside."""

    layers: tuple[BoundLayer, ...]
    inputs: tuple[str, ...]
    with_gradient: tuple[str, ...]
    """Those of `inputs` that take a gradient."""
    outputs: tuple[str, ...]
    """With `LOSS` among them, the loss of `prediction` against `TARGET` is taken after the layers."""
    prediction: str
    has_weights: bool

    def forward(self, values: Mapping[str, Tensor], moment: Moment) -> tuple[dict[str, Tensor], Held]:
        """The outputs and what the backward needs."""
        given = {name: values[name] for name in self.inputs}
        leaves = {
            name: given[name].detach().requires_grad_()
            for name in self.with_gradient
            if given[name].is_floating_point() or given[name].is_complex()
        }
        outputs = self._run(given | leaves, moment)
        return outputs, Held(leaves, {name: one for name, one in outputs.items() if one.requires_grad})

    @torch.no_grad()
    def forward_only(self, values: Mapping[str, Tensor], moment: Moment) -> dict[str, Tensor]:
        """The outputs, and nothing kept."""
        return self._run({name: values[name] for name in self.inputs}, moment)

    def backward(self, held: Held, terms: Terms, shared: Sequence[tuple[Tensor, Tensor]] = ()) -> None:
        """Both passes in one: adds to ``.grad`` of the parameters, and puts the inputs' gradients into `terms`.

        `shared` are parameters with their gradient so far, from other stages.
        """
        roots, gradients = _roots(held.outputs, terms)
        for root, gradient in (*_pairs(held.leaves, terms), *shared):
            roots.append(root)
            gradients.append(gradient)
        if roots:
            torch.autograd.backward(roots, gradients)
        for name, leaf in held.leaves.items():
            terms[name] = leaf.grad

    def input_backward(self, held: Held, terms: Terms) -> None:
        """The first pass: the inputs' gradients into `terms`; weights wait."""
        held.roots, held.gradients = _roots(held.outputs, terms)
        if not held.leaves:
            return
        roots, gradients = list(held.roots), list(held.gradients)
        for root, gradient in _pairs(held.leaves, terms):
            roots.append(root)
            gradients.append(gradient)
        if roots:
            found = torch.autograd.grad(
                roots, list(held.leaves.values()), gradients, retain_graph=self.has_weights, allow_unused=True
            )
            terms.update(zip(held.leaves, found, strict=True))
        held.leaves, held.outputs = {}, {}
        if not self.has_weights:
            held.roots, held.gradients = [], []

    def _run(self, values: dict[str, Tensor], moment: Moment) -> dict[str, Tensor]:
        with autocast(moment.device, moment.precision):
            for layer, _, call, may_draw in self.layers:
                if may_draw:
                    seed_layer(moment.run_seed, moment.step, moment.micro_batch, layer.index)
                made = _called(layer, call, [values[name] for name in layer.inputs])
                if isinstance(made, Tensor):
                    values[layer.outputs[0]] = made
                else:
                    values.update(zip(layer.outputs, made, strict=True))
            if LOSS in self.outputs:
                values[LOSS] = moment.objective.loss_of(values[self.prediction], (values[TARGET],))
        return {name: values[name] for name in self.outputs}


def _called(layer: Layer, call: Callable[..., Any], given: Sequence[Tensor]) -> Any:
    """What the layer makes of its inputs. RunFailed naming it and their shapes where it cannot."""
    try:
        return call(*given)
    except Exception as error:
        shapes = ", ".join(str(tuple(one.shape)) for one in given)
        raise RunFailed(
            f"layer {layer.index} ({layer.name}), given {shapes}: {type(error).__name__}: {error}"
        ) from error


def weight_backward(
    helds: Iterable[Held], parameters: Sequence[Tensor], shared: Sequence[tuple[Tensor, Tensor]] = ()
) -> None:
    """The second pass, of all segments of a stage at once, so that a parameter which several layers hold gets its
    terms in the order of one process: adds to ``.grad`` of `parameters`.
    """
    roots: list[Tensor] = []
    gradients: list[Tensor] = []
    for held in helds:
        roots += held.roots
        gradients += held.gradients
    for parameter, gradient in shared:
        roots.append(parameter)
        gradients.append(gradient)
    if roots and parameters:
        torch.autograd.backward(roots, gradients, inputs=list(parameters))


def _roots(outputs: Mapping[str, Tensor], terms: Terms) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs whose gradient is whole, with it; taken out of `terms`."""
    roots: list[Tensor] = []
    gradients: list[Tensor] = []
    for name, output in outputs.items():
        gradient = terms.pop(name, None)
        if gradient is not None:
            roots.append(output)
            gradients.append(gradient)
    return roots, gradients


def _pairs(leaves: Mapping[str, Tensor], terms: Terms) -> list[tuple[Tensor, Tensor]]:
    """Inputs that consumers behind this segment take too, with the gradient so far."""
    pairs = []
    for name, leaf in leaves.items():
        gradient = terms.get(name)
        if gradient is not None:
            pairs.append((leaf, gradient))
    return pairs
