"""What a layer takes and keeps, by numbers that can be known beforehand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from manyhands.clock import ManualClock, SystemClock
from manyhands.pipeline.measure import Measured, costs, measure
from manyhands.pipeline.models import read
from manyhands.pipeline.models.reading import Reading
from manyhands.pipeline.recipes import BuiltLayer, build
from manyhands.pipeline.stagecosts import Cost

CPU = torch.device("cpu")

LAYERS = [
    (nn.Linear, {"in_features": 64, "out_features": 64}, (4, 64)),
    (nn.ReLU, {}, (4, 64)),
    (nn.BatchNorm1d, {"num_features": 64}, (4, 64)),
    (nn.Linear, {"in_features": 64, "out_features": 2048}, (4, 64)),
]


@pytest.fixture(scope="module")
def reading() -> Reading:
    return read(LAYERS)


def layer_of(reading: Reading, index: int) -> BuiltLayer:
    return build(reading.recipes[index])


def test_what_is_kept_is_what_autograd_saves(reading: Reading) -> None:
    graph = reading.graph
    kept = [
        measure(
            layer_of(reading, at), [graph.edge(graph.layers[at].inputs[0])], 16, CPU, SystemClock()
        ).activation_bytes
        for at in (0, 1)
    ]
    assert kept == [16 * 64 * 4, 16 * 64 * 4]


def test_a_layer_is_as_before(reading: Reading) -> None:
    layer = layer_of(reading, 2)
    before = {name: tensor.clone() for name, tensor in (*layer.named_parameters(), *layer.named_buffers())}
    torch.manual_seed(4)
    state = torch.get_rng_state()
    measured = measure(layer, [reading.graph.edge("1")], 8, CPU, SystemClock())
    assert measured.seconds > 0
    assert all(
        torch.equal(before[name], one) for name, one in (*layer.named_parameters(), *layer.named_buffers())
    )
    assert all(parameter.grad is None for parameter in layer.parameters())
    assert torch.equal(torch.get_rng_state(), state)


class Ticks(ManualClock):
    """A clock that moves by what it is told each time that it is read."""

    def __init__(self, steps: list[float]) -> None:
        super().__init__()
        self.steps = steps

    def monotonic(self) -> float:
        self.now += self.steps.pop(0)
        return self.now


def test_the_fastest_run_counts(reading: Reading) -> None:
    steps = [0.0, 9.0, 0.0, 2.0, 0.0, 5.0, 0.0, 4.0]
    measured = measure(layer_of(reading, 0), [reading.graph.edge("input")], 4, CPU, Ticks(steps))
    assert measured.seconds == pytest.approx(2.0)
    assert not steps


def test_a_plan_is_made_of_what_was_measured(reading: Reading) -> None:
    with torch.device("meta"):
        layers = [build(recipe) for recipe in reading.recipes]
    layers[3].requires_grad_(False)
    made = costs(layers, [[Measured(1.0, 10), Measured(2.0, 12)]] * 4)
    assert made[0] == Cost((1.0, 2.0), 64 * 65 * 4, 64 * 65 * 4, 0, 12)
    assert made[2].buffer_bytes == 2 * 64 * 4 + 8
    assert (made[3].weight_bytes, made[3].trained_bytes) == (2048 * 65 * 4, 0)
