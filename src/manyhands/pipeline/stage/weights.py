"""The parameters and buffers of one stage under the model's names, and its state as plain tensors.

A parameter that several layers of the stage hold is made one object; one that other stages hold too is theirs to
step where they come first: the others have copies, which they neither step nor save. Knows no gradients' routes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from manyhands.errors import UsageError
from manyhands.pipeline.stage.routing import Shared

OptimizerTensors = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class StageState:
    """All that a stage knows after a step, by the model's names, so that any other cut can take it up.

    Random numbers have no state: they are keyed by step, micro-batch and layer. Tensors are copies on the CPU.
    """

    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]
    optimizer: OptimizerTensors
    """For each parameter the optimizer's tensors by torch's names, as far as it has made them."""
    step: int
    """The number of the last optimizer step, -1 before the first."""
    lr: float | None
    """The learning rate; None without an optimizer or parameters."""

    @classmethod
    def merged(cls, states: Iterable[StageState]) -> StageState:
        """The state of the whole model, of all its stages'."""
        parameters: dict[str, Tensor] = {}
        buffers: dict[str, Tensor] = {}
        optimizer: OptimizerTensors = {}
        steps, rates = [], []
        for state in states:
            parameters |= state.parameters
            buffers |= state.buffers
            optimizer |= state.optimizer
            steps.append(state.step)
            rates += [] if state.lr is None else [state.lr]
        if len(set(steps)) != 1:
            raise UsageError(
                f"stages stand at different steps, {sorted(set(steps))}: this is no state of one moment"
            )
        return cls(parameters, buffers, optimizer, steps[0], rates[0] if rates else None)


@dataclass(frozen=True)
class StageWeights:
    """Tensors of one stage; `parameters` and `buffers` in the order of its layers, each once."""

    parameters: Mapping[str, nn.Parameter]
    buffers: Mapping[str, Tensor]
    copies: frozenset[str]
    """Parameters whose owner is an earlier stage."""

    @classmethod
    def of(cls, layers: Sequence[nn.Module], shared: Sequence[Shared], copies: Iterable[str]) -> StageWeights:
        """The weights of built `layers`, whose names are the model's. Ties those that are one parameter."""
        called = {alias: one.name for one in shared for alias in one.aliases}
        parameters: dict[str, nn.Parameter] = {}
        replaced: dict[int, nn.Parameter] = {}
        for layer in layers:
            for name, parameter in layer.named_parameters():
                kept = parameters.setdefault(called.get(name, name), parameter)
                replaced[id(parameter)] = kept
        for layer in layers:
            _replace(layer, replaced)
        buffers = {name: buffer for layer in layers for name, buffer in layer.named_buffers()}
        return cls(parameters, buffers, frozenset(copies))

    @cached_property
    def trainable(self) -> dict[str, nn.Parameter]:
        """What takes a gradient, copies included."""
        return {name: one for name, one in self.parameters.items() if one.requires_grad}

    @cached_property
    def stepped(self) -> dict[str, nn.Parameter]:
        """What this stage's optimizer steps."""
        return {name: one for name, one in self.trainable.items() if name not in self.copies}

    def tensors(self) -> dict[str, Tensor]:
        """Parameters that the stage owns and buffers, by the model's names; not copies."""
        owned = {name: one.detach() for name, one in self.parameters.items() if name not in self.copies}
        return {**owned, **self.buffers}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Write the values of `tensors` that are this stage's, copies too; others are passed over.

        UsageError where one has another shape.
        """
        for name, mine in {**self.parameters, **self.buffers}.items():
            if name in tensors:
                write(mine, tensors[name], name)

    def snapshot(self, optimizer: Optimizer | None, step: int) -> StageState:
        """The state after step `step`."""
        states = optimizer.state if optimizer is not None else {}
        kept: OptimizerTensors = {
            name: {key: _copy(value) for key, value in states[one].items() if isinstance(value, Tensor)}
            for name, one in self.stepped.items()
            if one in states
        }
        return StageState(
            {name: _copy(one) for name, one in self.parameters.items() if name not in self.copies},
            {name: _copy(one) for name, one in self.buffers.items()},
            kept,
            step,
            None if optimizer is None else float(optimizer.param_groups[0]["lr"]),
        )

    def restore(self, state: StageState, optimizer: Optimizer | None) -> None:
        """Take up `state`, of this cut or of another one; what is not this stage's is passed over.

        UsageError where something of this stage is missing, or has another shape.
        """
        held = {**state.parameters, **state.buffers}
        if missing := [name for name in (*self.parameters, *self.buffers) if name not in held]:
            raise UsageError(f"the state is of another model: it has no {missing[0]}")
        self.load(held)
        if optimizer is None:
            return
        if state.lr is not None:
            set_rate(optimizer, state.lr)
        optimizer.state.clear()
        for name, parameter in self.stepped.items():
            if name in state.optimizer:
                optimizer.state[parameter] = {
                    key: _placed(key, value, parameter) for key, value in state.optimizer[name].items()
                }


def set_rate(optimizer: Optimizer, lr: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def write(mine: Tensor, value: Tensor, name: str) -> None:
    """Copy `value` into `mine`; UsageError where the shapes differ."""
    if mine.shape != value.shape:
        raise UsageError(f"{name} is {tuple(mine.shape)} here, and the state's is {tuple(value.shape)}")
    with torch.no_grad():
        mine.copy_(value)


def _replace(layer: nn.Module, replaced: Mapping[int, nn.Parameter]) -> None:
    for module in layer.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and replaced[id(parameter)] is not parameter:
                module._parameters[name] = replaced[id(parameter)]


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _placed(key: str, value: Any, parameter: nn.Parameter) -> Tensor:
    # As torch's load_state_dict: step counts stay where the optimizer made them, on the CPU.
    device = "cpu" if key == "step" else parameter.device
    placed: Tensor = value.to(device, copy=True)
    return placed
