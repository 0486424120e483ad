"""Layers as programs: outputs in both modes, no loss, gradients of inputs."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor, nn

from manyhands.errors import CaptureFailed, ProgramRefused, UsageError
from manyhands.programs.capture import capture
from manyhands.programs.format import encode
from manyhands.programs.layers import ProgramLayer
from manyhands.programs.parser import parse
from manyhands.programs.proof import OWN, prove_layer


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm, self.drop = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.25)

    def forward(self, x: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        y = self.drop(self.norm(self.fc(x)))
        return y + skip, y


def batches() -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(rows, 4), torch.randn(rows, 4)) for rows in (2, 3)]


def test_a_layer_is_captured_and_proven() -> None:
    layer = Mixer()
    captured = capture(layer, None, batches())
    assert captured.program.graphs.train is not None
    assert captured.program.graphs.train.loss is None
    prove_layer(captured, layer, batches())


def test_a_layer_gives_its_outputs_and_the_gradients_of_its_inputs() -> None:
    layer = Mixer()
    captured = capture(layer, None, batches())
    program = ProgramLayer(parse(encode(captured.program), has_loss=False), captured.tensors, limits=OWN)
    x, skip = torch.randn(5, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    found, wanted = [], []
    for module, kept in ((program, found), (layer, wanted)):
        torch.manual_seed(2)
        first, second = module(x, skip)
        gradients = torch.autograd.grad((first * second).sum(), (x, skip, layer.fc.weight))
        kept.extend((first, second, *gradients))
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_other_inputs_are_told() -> None:
    captured = capture(Mixer(), None, batches())
    program = ProgramLayer(parse(encode(captured.program), has_loss=False), captured.tensors, limits=OWN)
    with pytest.raises(UsageError, match="the layer takes 2 tensors, and got 1"):
        program(torch.randn(2, 4))
    with pytest.raises(UsageError, match="tensor 1 of the batch is"):
        program(torch.randn(2, 4), torch.randn(2, 5))


def test_a_loss_has_no_place_in_a_layer() -> None:
    layer = nn.Linear(4, 4)
    captured = capture(layer, lambda module, batch: module(batch).sum(), [torch.randn(2, 4)])
    with pytest.raises(ProgramRefused, match="the train graph has a loss"):
        parse(encode(captured.program), has_loss=False)


class Lucky(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * random.random()


def test_what_a_trace_cannot_see_is_found() -> None:
    def both(rows: int) -> list[tuple[Tensor]]:
        return [(torch.randn(rows, 4),), (torch.randn(rows + 1, 4),)]

    captured = capture(Flat(Lucky()), None, both(2))
    random.random()
    with pytest.raises(CaptureFailed, match="the program is not the model"):
        prove_layer(captured, Flat(Lucky()), both(2))


class Flat(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.inner(x),)
