"""What a pipeline must equal: the same layers and micro-batches in one process, by plain autograd.

Written as one writes it without any of this mode, and sharing no code with the engine: values in a dict, `backward`
on each micro-batch's loss, torch's own optimizer and ``clip_grad_norm_``. Only how random numbers are keyed is the
mode's own, and stated here once more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from manyhands.pipeline.graph import BATCH, MAIN_INPUT, Graph
from manyhands.training.objective import Objective
from manyhands.training.seeds import derive, generators


class OneProcess:
    """A whole model here. `layers` are built, one a layer of `graph`; names that are tied become one parameter."""

    def __init__(
        self,
        graph: Graph,
        layers: Sequence[nn.Module],
        *,
        run_seed: int = 0,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.graph = graph
        self.layers = layers
        self.step_number = 0
        self._run_seed = run_seed
        self._autocast = autocast

    def tie(self) -> None:
        """Make parameters that are one by the graph one object, the owner's. Before any other use."""
        first_name = {name: group[0] for group in self.graph.ties for name in group}
        owners: dict[str, nn.Parameter] = {}
        for layer in self.layers:
            for name, parameter in list(layer.named_parameters()):
                owner = owners.setdefault(first_name.get(name, name), parameter)
                for module in layer.modules():
                    for local, held in module._parameters.items():
                        if held is parameter:
                            module._parameters[local] = owner

    def parameters(self) -> dict[str, nn.Parameter]:
        """Each parameter once, by its first name, in the order of the layers."""
        named = [pair for layer in self.layers for pair in layer.named_parameters()]
        first: dict[int, str] = {}
        for name, parameter in named:
            first.setdefault(id(parameter), name)
        return {name: parameter for name, parameter in named if first[id(parameter)] == name}

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers by name."""
        buffers = {name: buffer for layer in self.layers for name, buffer in layer.named_buffers()}
        return {**{name: one.detach() for name, one in self.parameters().items()}, **buffers}

    def predict(self, x: Tensor, extra: Mapping[str, Tensor] | None = None, micro_batch: int = 0) -> Tensor:
        """The prediction of one micro-batch, in the mode that the layers are in."""
        values: dict[str, Any] = {MAIN_INPUT: x, **(extra or {})}
        with generators(0):
            for layer, module in zip(self.graph.layers, self.layers, strict=True):
                seed = derive(self._run_seed, "layer", self.step_number, micro_batch, layer.index)
                torch.default_generator.manual_seed(seed)
                if x.is_cuda:
                    torch.cuda.manual_seed_all(seed)
                made = module(*(values[name] for name in layer.inputs))
                outputs = (made,) if isinstance(made, Tensor) else made
                values |= dict(zip(layer.outputs, outputs, strict=True))
        prediction: Tensor = values[self.graph.prediction]
        return prediction

    def train_batch(
        self,
        optimizer: Optimizer,
        x: Tensor,
        target: Tensor,
        objective: Objective,
        *,
        num_micro_batches: int = 1,
        extra: Mapping[str, Tensor] | None = None,
        max_norm: float | None = None,
    ) -> float:
        """One step over a batch; returns its loss, the micro-batches' each by its share of what a mean is over."""
        optimizer.zero_grad()
        wholes = {edge.name for edge in self.graph.edges if edge.producer == BATCH and not edge.batched}
        inputs = {MAIN_INPUT: x, **(extra or {})}
        targets = target.tensor_split(num_micro_batches)
        weights = [objective.weigh((part,)) for part in targets]
        total = 1.0 if objective.is_sum else sum(weights)
        loss_of_batch = torch.zeros(())
        for at, (part, weight) in enumerate(zip(targets, weights, strict=True)):
            given = {
                name: value if name in wholes else value.tensor_split(num_micro_batches)[at]
                for name, value in inputs.items()
            }
            with torch.autocast(x.device.type, dtype=self._autocast, enabled=self._autocast is not None):
                prediction = self.predict(given.pop(MAIN_INPUT), given, at)
                loss = objective.loss_of(prediction, (part,))
            if weight:
                share = loss * (weight / total)
                share.backward()  # type: ignore[no-untyped-call]
                loss_of_batch = loss_of_batch + share.detach()
        if max_norm is not None:
            held = [one for group in optimizer.param_groups for one in group["params"]]
            torch.nn.utils.clip_grad_norm_(held, max_norm)
        optimizer.step()
        self.step_number += 1
        return float(loss_of_batch)
