"""The residual regression of a layer list: sin(x), plain SGD, driven with the loss outside, 400 steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from stage_models import assert_same_bits
from torch import nn

from manyhands.pipeline.models import read
from manyhands.pipeline.recipes import build
from manyhands.pipeline.stage.local import LocalPipeline
from manyhands.pipeline.stage.optimizers import OptimizerRecipe
from manyhands.pipeline.stage.reference import OneProcess
from manyhands.pipeline.wrapped import wrapped_linear

WIDTH, STEPS, SAMPLES = 64, 400, 32

RESIDUAL = [
    (nn.Linear, {"in_features": 1, "out_features": WIDTH}, (SAMPLES, 1)),
    (nn.ReLU, {}, (SAMPLES, WIDTH)),
    (
        wrapped_linear,
        {"in_features": WIDTH, "out_features": WIDTH, "out_variables": ["res"]},
        [(SAMPLES, WIDTH)],
    ),
    (nn.ReLU, {}, (SAMPLES, WIDTH)),
    (nn.Linear, {"in_features": WIDTH, "out_features": WIDTH}, (SAMPLES, WIDTH)),
    (nn.ReLU, {}, (SAMPLES, WIDTH)),
    (
        wrapped_linear,
        {"in_features": WIDTH, "out_features": WIDTH, "dependencies": ["res"], "out_variables": []},
        [(SAMPLES, WIDTH), (SAMPLES, WIDTH)],
    ),
    (nn.ReLU, {}, (SAMPLES, WIDTH)),
    (nn.Linear, {"in_features": WIDTH, "out_features": 1}, (SAMPLES, WIDTH)),
    (nn.Sigmoid, {}, (SAMPLES, 1)),
]


class Residual(nn.Module):
    """The same, as one writes it in one process."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = x
        for at, layer in enumerate(self.layers):
            x = layer(x) + kept if at == 6 else layer(x)
            if at == 2:
                kept = x
        return x


def built(seed: int = 0) -> tuple[Any, list[nn.Module]]:
    reading = read(RESIDUAL)
    torch.manual_seed(seed)
    return reading.graph, [build(recipe) for recipe in reading.recipes]


@pytest.mark.parametrize("bounds", [pytest.param((0, 3, 10), marks=pytest.mark.slow), (0, 1, 3, 5, 7, 10)])
def test_400_steps_have_the_bits_of_a_plain_loop(bounds: tuple[int, ...]) -> None:
    torch.set_num_threads(1)
    graph, layers = built()
    pipeline = LocalPipeline.build(graph, layers, bounds)
    pipeline.set_optimizer(OptimizerRecipe.of(torch.optim.SGD, {"lr": 0.2}))
    torch.manual_seed(0)
    plain = Residual([cls(**_plain(options)) for cls, options, _ in RESIDUAL])
    assert_same_bits(pipeline.tensors(), _tensors(plain))
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.2)
    loss_fn = nn.MSELoss()
    drawn = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        x = torch.rand(SAMPLES, 1, generator=drawn) * 6 - 3
        y = (torch.sin(x) + 1) / 2
        optimizer.zero_grad()
        loss = loss_fn(plain(x), y)
        loss.backward()
        optimizer.step()
        prediction = pipeline.forward(x).requires_grad_()
        mine = loss_fn(prediction, y)
        mine.backward()
        assert prediction.grad is not None
        pipeline.backward(prediction.grad)
        pipeline.step()
        assert torch.equal(mine, loss)
    assert_same_bits(pipeline.tensors(), _tensors(plain))
    assert float(loss.detach()) < 0.02


def test_the_reference_is_that_plain_loop_too() -> None:
    torch.set_num_threads(1)
    reference = OneProcess(*built())
    torch.manual_seed(0)
    plain = Residual([cls(**_plain(options)) for cls, options, _ in RESIDUAL])
    x = torch.linspace(-3, 3, SAMPLES)[:, None]
    assert torch.equal(reference.predict(x), plain(x))


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in ("dependencies", "out_variables")}


def _tensors(plain: nn.Module) -> dict[str, torch.Tensor]:
    return {name.removeprefix("layers."): one.detach() for name, one in plain.named_parameters()}
